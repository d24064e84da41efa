"""Command `genexp-export RUN --format FORMAT`: the encoder, decoder or generator of a run for other programs."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from genexp.cli.common import CommandParser, add_checkpoint_option, build_int_type, run_command
from genexp.cli.plugins import add_plugin_option, use_plugins
from genexp.errors import ConfigError
from genexp.registry import get_plugins
from genexp.reports.config_diff import find_overridden_defaults, format_setting, get_settings
from genexp.reports.table import format_score
from genexp.run_dir.files import create_dir, write_file
from genexp.run_dir.paths import EXPORT_DIR, format_path
from genexp.run_dir.record import RunRecord, read_run

if TYPE_CHECKING:
    from torch import Tensor

    from genexp.cli.export_formats import ExportedPart
    from genexp.data.dataset import Dataset
    from genexp.runs.load import LoadedRun

PROGRAM = "genexp-export"
CARD_FILE = "README.md"
FORMAT_HELP = {
    "safetensors": "the weights, by their names in the technique",
    "onnx": "a graph for onnxruntime and others",
    "torch": "a graph for torch.export.load, without genexp",
}
FREE_BATCH = "free"
NOTES = {
    "safetensors": "The files hold weights only, and loading them executes no code.",
    "onnx": "The graphs were compared with torch by onnxruntime.",
    "torch": "The graphs are programs of `torch.export`. Load them with the torch below, or a newer one.",
}
ORIGIN_KEYS = ("torch", "genexp", "git_commit", "plugins")
MAX_BATCH_SIZE = 10_000
MAX_EXAMPLES = 10  # test samples from which the examples of a free batch are taken
MAX_LISTED_WEIGHTS = 100  # of a part in the model card
# How to load a file, by format. "weights" is for parts with weights of their own.
LOADING = {
    "onnx": """import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("{file}")
inputs = {{{numpy_inputs}}}
({output},) = session.run(None, inputs)
""",
    "torch": """import torch
{name} = torch.export.load("{file}").module()
{output} = {name}({torch_inputs})
""",
    "safetensors": """import genexp
from safetensors.torch import load_file
weights = load_file("{file}")  # name → tensor
technique = genexp.load_run({run_dir!r}{plugins}).technique  # the directory of the run
technique.load_state_dict(weights, strict=False)
""",
    "weights": """from safetensors.torch import load_file
weights = load_file("{file}")  # name → tensor
""",
}


@dataclass(frozen=True)
class ExportedFile:
    """A file that was written and compared."""

    path: Path
    exported: ExportedPart
    num_bytes: int
    difference: float  # to the technique, relative to the largest output if that is above 1


def main() -> NoReturn:
    """Export the run named on the command line."""
    run_command(PROGRAM, lambda: _run(sys.argv[1:]))


def _build_parser() -> argparse.ArgumentParser:
    formats = "\n".join(f"  {name:12} {description}" for name, description in FORMAT_HELP.items())
    parser = CommandParser(
        PROGRAM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write the encoder, decoder, generator or other parts of a run as files for other programs,\n"
        "and a model card. Each file is read again and compared with the technique. FORMAT is one of:\n\n"
        + formats,
    )
    parser.completions = {**parser.completions, "FORMAT": tuple(FORMAT_HELP)}
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument("--format", required=True, metavar="FORMAT", help=", ".join(FORMAT_HELP))
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"default: RUN/{EXPORT_DIR}/FORMAT")
    parser.add_argument(
        "--batch",
        type=_parse_batch,
        default=None,
        metavar="N",
        help=f"number of samples in a batch, or {FREE_BATCH} for any number (default: {FREE_BATCH})",
    )
    parser.add_argument(
        "--part",
        action="append",
        default=[],
        metavar="NAME",
        help="encoder, decoder, generator or another part of the technique; can be repeated (default: all)",
    )
    add_checkpoint_option(parser)
    add_plugin_option(parser)
    return parser


def _parse_batch(text: str) -> int | None:
    count = None if text == FREE_BATCH else build_int_type(1)(text)
    if count is not None and count > MAX_BATCH_SIZE:
        raise argparse.ArgumentTypeError(f"{count} is above {MAX_BATCH_SIZE}")
    return count


def _run(arguments: Sequence[str]) -> int:
    args = _build_parser().parse_args(arguments)
    use_plugins(args.plugin)
    if args.format not in FORMAT_HELP:
        raise ConfigError(f"--format {args.format}: unknown format. Use one of: {', '.join(FORMAT_HELP)}.")

    from genexp.cli.export_formats import FORMATS, build_parts, check_packages, serialize  # imports torch
    from genexp.device import format_bytes
    from genexp.runs.load import load_run, read_config

    config = read_config(args.run)
    check_packages(args.format)
    run = load_run(args.run, config, checkpoint_name=args.checkpoint, device_name="cpu")
    output_dir = args.output or args.run / EXPORT_DIR / args.format
    files = []
    with run.seeded_eval_mode("export"):
        parts = build_parts(run.technique, run.get_examples(args.batch or MAX_EXAMPLES), args.part, args.batch)
        for exported in parts:
            path = output_dir / f"{exported.name}{FORMATS[args.format].suffix}"
            content, difference = serialize(exported, args.format)
            create_dir(path.parent)
            write_file(path, content)
            files.append(ExportedFile(path, exported, len(content), difference))
            size = format_bytes(len(content))
            print(f"{format_path(path)}: {size}, largest difference to the technique {difference:.1g}")
    card = output_dir / CARD_FILE
    write_file(card, build_model_card(run, args.format, files))
    print(format_path(card))
    return 0


def build_model_card(run: LoadedRun, format_name: str, files: Sequence[ExportedFile]) -> str:
    """Return the text of the model card in Markdown: the files, their inputs and outputs, and their origin."""
    record = read_run(run.run_dir)
    settings, defaults = get_settings(record), find_overridden_defaults(record)
    differences = {
        key: f"{format_setting(settings[key])} (default {format_setting(defaults[key])})" for key in defaults
    }
    environment = record.status.environment
    data = {f"{split} split": text for split, text in record.status.data.items()}
    sections = {
        "Files": "\n".join(_describe_file(file) for file in files),
        "Loading": "\n".join(_format_loading(run, format_name, file) for file in files),
        "Configuration": _format_table("setting", "value", differences) or "All settings have their defaults.",
        "Data": _format_table("", "", {"data set": record.dataset_name, **data}) + _format_columns(run.dataset),
        "Scores on the test split": _format_scores(record) or "None.",
        "Origin": _format_table(
            "",
            "",
            {
                "run": run.run_dir.name,
                "checkpoint": f"{run.checkpoint_path.name}, step {run.step:,}",
                "seed": str(run.seed),
                **{name: environment[name] for name in ORIGIN_KEYS if name in environment},
            },
        ),
    }
    title = f"# {_escape(record.model_name)} on {_escape(record.dataset_name)}"
    doc = type(run.technique).__doc__
    summary = _escape(" ".join(doc.split("\n\n")[0].split())) if doc else ""
    notes = NOTES[format_name]
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return f"{title}\n\n{summary}\n\nWritten by `{PROGRAM}`. {notes}\n\n{body}\n"


def _describe_file(file: ExportedFile) -> str:
    from genexp.device import format_bytes

    part, output, weights = file.exported.part, file.exported.output, file.exported.weights
    batch = "batch" if file.exported.has_free_batch else str(len(output))

    def describe(name: str, tensor: Tensor) -> str:
        shape = ", ".join([batch, *map(str, tensor.shape[1:])])
        values = f": {_escape(part.ranges[name])}" if name in part.ranges else ""
        return f"`{name}` {str(tensor.dtype).removeprefix('torch.')} ({shape}){values}"

    count = sum(weight.numel() for weight in weights.values())
    lines = [
        f"`{file.path.name}`: {format_bytes(file.num_bytes)}, {count:,} weights, "
        f"largest difference to the technique {file.difference:.1g}",
        "",
        *(f"- input {describe(name, tensor)}" for name, tensor in part.inputs.items()),
        f"- output {describe(part.output, output)}",
    ]
    if file.path.suffix == ".safetensors":
        shapes = [f"`{name}` {tuple(weight.shape)}" for name, weight in weights.items()][:MAX_LISTED_WEIGHTS]
        lines.append(f"- weights {', '.join(shapes)}")
    return "\n".join(lines) + "\n"


def _format_loading(run: LoadedRun, format_name: str, file: ExportedFile) -> str:
    inputs = file.exported.part.inputs
    key = "weights" if format_name == "safetensors" and file.exported.module.is_own_module else format_name
    types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in inputs.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    if file.exported.has_free_batch:
        shapes = {name: (1, *shape[1:]) for name, shape in shapes.items()}
    sources = [plugin.name if plugin.source == plugin.name else plugin.path.name for plugin in get_plugins()]
    plugins = f", plugins={sources}" if sources else ""
    code = LOADING[key].format(
        name=file.exported.name,
        file=file.path.name,
        output=file.exported.part.output,
        numpy_inputs=", ".join(f'"{name}": np.zeros({shapes[name]}, "{types[name]}")' for name in inputs),
        torch_inputs=", ".join(f"torch.zeros({shapes[name]}, dtype=torch.{types[name]})" for name in inputs),
        run_dir=run.run_dir.name,
        plugins=plugins,
    )
    return f"```python\n{code}```\n"


def _format_columns(dataset: Dataset) -> str:
    """Return, for a table, the formula of the input for each column of its file. Return "" for other data."""
    if dataset.columns is None:
        return ""
    names, offset, scale = dataset.columns.names, dataset.columns.offset.tolist(), dataset.columns.scale.tolist()
    scales = {name: f"(value - {offset[i]:.9g}) / {scale[i]:.9g}" for i, name in enumerate(names)}
    return "\n\n" + _format_table("column", "input", scales)


def _format_scores(record: RunRecord) -> str:
    scores = {name: format_score(value) for name, value in record.status.test.items()}
    return _format_table("metric", "value", scores)


def _format_table(key_title: str, value_title: str, values: Mapping[str, str]) -> str:
    """Return a Markdown table with two columns, "" without values."""
    rows = [f"| {_escape(key)} | {_escape(value)} |" for key, value in values.items()]
    return "\n".join([f"| {key_title} | {value_title} |", "|---|---|", *rows]) if rows else ""


def _escape(text: str) -> str:
    """Return text of a run as one line of Markdown without markup, links and HTML."""
    line = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", line)


if __name__ == "__main__":
    main()
