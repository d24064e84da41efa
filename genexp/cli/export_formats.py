"""File formats of `genexp-export`: serialization of the parts of a technique, and checks by reading them again."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.overrides import TorchFunctionMode

from genexp.config import suggest_choice
from genexp.errors import ConfigError
from genexp.technique import Batch, Technique, TechniquePart

TOLERANCE = 1e-5  # largest difference to torch, relative to the largest output if that is above 1
MIN_EQUAL_INTEGERS = 0.99  # fraction; rounding can change which of two equally near codes is the nearest one
MAX_REASON_LENGTH = 200  # of the message of a library
FREE_BATCH_SIZE = 3  # of the examples of a part with a free batch size; sizes 0 and 1 would be constants


class PartModule(nn.Module):
    """A part of a technique as a module, whose weights have the names that they have in the technique."""

    def __init__(self, technique: Technique, part: TechniquePart) -> None:
        super().__init__()
        compute = part.compute
        self.content: nn.Module = technique
        if isinstance(compute, nn.Module) and compute not in set(technique.modules()):
            self.content = compute
        self.is_own_module = self.content is not technique
        self.call: Callable[..., Tensor] = lambda *inputs: compute(*inputs)  # not registered as a module

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the output (batch, ...) for the inputs (batch, ...) of the part."""
        return self.call(*inputs)


@dataclass(frozen=True)
class ExportedPart:
    """A part of a trained technique that is ready to be written."""

    name: str
    part: TechniquePart
    module: PartModule
    has_free_batch: bool

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Example inputs, (batch, ...) each."""
        return tuple(self.part.inputs.values())

    @cached_property
    def output(self) -> Tensor:
        """Output (batch, ...) for the example inputs. Raises ConfigError."""
        with _report_failure(self.name), torch.no_grad():
            return self.module(*self.inputs)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Name → parameter or buffer of any shape, of those that the part uses. Raises ConfigError."""
        with _report_failure(self.name), torch.no_grad(), _RecordUses() as uses:
            self.module(*self.inputs)
        weights = self.module.content.state_dict(keep_vars=True)
        return {name: weight for name, weight in weights.items() if id(weight) in uses.ids}

    @cached_property
    def program(self) -> ExportedProgram:
        """The part as a graph of torch, with only the weights that it uses. Raises ConfigError."""
        batch = Dim("batch", min=1)
        shapes = tuple({0: batch} for _ in self.inputs) if self.has_free_batch else None
        remedy = (
            "Use --batch N, or tensor.shape[0] instead of len(tensor) in its code" if self.has_free_batch else ""
        )
        with _report_failure(self.name, remedy), torch.no_grad():
            program = torch.export.export(self.module, self.inputs, dynamic_shapes=(shapes,) if shapes else None)
        _remove_unused_weights(program)
        return program


class _RecordUses(TorchFunctionMode):
    """Recorder of the tensors from which operations of torch compute others."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(True for _ in _iter_tensors(result)):  # not a size or a device
            self.ids.update(id(tensor) for tensor in _iter_tensors((*args, *(kwargs or {}).values())))
        return result


def _iter_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _iter_tensors(item)


@contextmanager
def _report_failure(name: str, remedy: str = "") -> Iterator[None]:
    """Raise any error in the block as a ConfigError that names the part. Exporters log and warn nothing in it."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split())[:MAX_REASON_LENGTH]
            raise ConfigError(
                f"--part {name}: not exportable ({type(error).__name__}: {reason}). "
                f"{remedy or 'Use another part'}."
            ) from error
        finally:
            logging.disable(level)


def _remove_unused_weights(program: ExportedProgram) -> None:
    """Remove the parameters and buffers that no operation uses from a graph and its weights."""
    graph, signature = program.graph_module.graph, program.graph_signature
    unused = {node.name for node in graph.nodes if node.op == "placeholder" and not node.users}
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    removed = [spec for spec in signature.input_specs if spec.kind in kinds and spec.arg.name in unused]
    for spec in removed:
        signature.input_specs.remove(spec)
        program.state_dict.pop(str(spec.target), None)
        program.constants.pop(str(spec.target), None)
    names = {spec.arg.name for spec in removed}
    for node in list(graph.nodes):
        if node.name in names:
            graph.erase_node(node)
    program.graph_module.recompile()


def _write_onnx(exported: ExportedPart) -> bytes:
    program, part = exported.program, exported.part
    with _report_failure(exported.name), torch.no_grad():
        onnx_program = torch.onnx.export(
            program,
            input_names=list(part.inputs),
            output_names=[part.output],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert onnx_program is not None
        model = onnx_program.model_proto
        graph = model.graph
        free_size = graph.input[0].type.tensor_type.shape.dim[0].dim_param
        for value in (*graph.input, *graph.output, *graph.value_info):
            for size in value.type.tensor_type.shape.dim:
                if free_size and size.dim_param == free_size:
                    size.dim_param = "batch"
        return bytes(model.SerializeToString())


def _compute_onnx(content: bytes, exported: ExportedPart, inputs: Sequence[Tensor]) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = exported.part.inputs
    arrays = {name: tensor.numpy(force=True) for name, tensor in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, arrays)[0])


def _write_torch(exported: ExportedPart) -> bytes:
    buffer, program = io.BytesIO(), exported.program
    with _report_failure(exported.name):
        torch.export.save(program, buffer)
    return buffer.getvalue()


def _compute_torch(content: bytes, exported: ExportedPart, inputs: Sequence[Tensor]) -> Tensor:
    output: Tensor = torch.export.load(io.BytesIO(content)).module()(*inputs)
    return output


def _write_safetensors(exported: ExportedPart) -> bytes:
    from safetensors.torch import save

    # Cloned: two names may share memory, which the format does not allow.
    return save({name: weight.detach().clone().contiguous() for name, weight in exported.weights.items()})


def _compute_safetensors(content: bytes, exported: ExportedPart, inputs: Sequence[Tensor]) -> Tensor:
    """Return the output (batch, ...) of the part with the weights in `content`, which replace its own."""
    from safetensors.torch import load

    weights = load(content)
    for weight in exported.weights.values():
        weight.zero_()
    exported.module.content.load_state_dict(weights, strict=False)
    return exported.module(*inputs)


@dataclass(frozen=True)
class ExportFormat:
    """A file format of `genexp-export`."""

    suffix: str
    packages: tuple[str, ...]  # of the extra `export` that it needs
    write: Callable[[ExportedPart], bytes]
    compute: Callable[[bytes, ExportedPart, Sequence[Tensor]], Tensor]  # content, part, inputs → output


FORMATS: Mapping[str, ExportFormat] = {
    "safetensors": ExportFormat(".safetensors", ("safetensors",), _write_safetensors, _compute_safetensors),
    "onnx": ExportFormat(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _compute_onnx),
    "torch": ExportFormat(".pt2", (), _write_torch, _compute_torch),
}


def check_packages(format_name: str) -> None:
    """Raise ConfigError if a package that a format needs is not installed."""
    for package in FORMATS[format_name].packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"--format {format_name}: requires the package {package}. Run `pip install 'genexp[export]'`."
            )


def build_parts(
    technique: Technique, examples: Batch, names: Sequence[str], batch_size: int | None
) -> list[ExportedPart]:
    """Return the parts of a technique with these names, or all without `names`. Raises ConfigError.

    `examples` are test samples (batch, ...). They are repeated to `batch_size`; None leaves the size free.
    """
    count = batch_size or FREE_BATCH_SIZE
    rows = torch.arange(count) % len(next(iter(examples.values())))
    with _report_failure("all"), torch.no_grad():
        parts = technique.list_parts({name: samples[rows] for name, samples in examples.items()})
    if not parts:
        raise ConfigError(f"model={technique.name}: has no part to export. Define list_parts in the technique.")
    for name in (*parts, *names):
        if not name.isidentifier():  # it names a file
            raise ConfigError(f"--part {name}: not a name of letters, digits and _. Rename it.")
        if name not in parts:
            raise ConfigError(
                f"--part {name}: not a part of model={technique.name}. {suggest_choice(name, parts)}"
            )
    return [
        ExportedPart(name, part, PartModule(technique, part), batch_size is None)
        for name, part in parts.items()
        if not names or name in names
    ]


def serialize(exported: ExportedPart, format_name: str) -> tuple[bytes, float]:
    """Return the content of a file, and its largest difference to torch, relative to the largest output above 1.

    Raises ConfigError if the difference exceeds TOLERANCE, or the weights alone are not those of the part.
    """
    file_format = FORMATS[format_name]
    inputs, expected = exported.inputs, exported.output
    content = file_format.write(exported)
    difference = 0.0
    with _report_failure(exported.name), torch.no_grad():
        for count in {1, len(expected)} if exported.has_free_batch else {len(expected)}:
            found = file_format.compute(content, exported, [tensor[:count] for tensor in inputs])
            difference = max(difference, measure_difference(found, expected[:count]))
    if not difference <= TOLERANCE:  # NaN too
        raise ConfigError(
            f"--part {exported.name}: the file differs from torch by {difference:.2g}, more than {TOLERANCE}. "
            f"Use another format."
        )
    return content, difference


def measure_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of two tensors of one shape, relative to the largest expected value above 1.

    Integers differ by 0 if nearly all are equal. Infinity stands for another shape or type.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.is_floating_point():
        return 0.0 if float((found == expected).float().mean()) >= MIN_EQUAL_INTEGERS else float("inf")
    scale = max(1.0, float(expected.abs().max()))
    return float((found - expected).abs().max()) / scale
