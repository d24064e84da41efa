"""Correctness and speed on a GPU, in a limited time and without a network. The result is one JSON file.

    python scripts/benchmark gpu --minutes 8 --out gpu.json
    python scripts/benchmark gpu --minutes 4 --out rehearsal.json --rehearse

With `--rehearse` the CPU takes the place of the GPU, and the tasks are small: this tests the script only.
The file is written after each row, so that an interrupted script leaves what it measured.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmark import reference_loops
from benchmark.clock import read_seconds
from benchmark.compose import compose_config
from benchmark.sweep import time_ensemble, time_single_run
from benchmark.trainer import TASKS, TrainingTask, build_run_and_reference, load_images
from genexp.kmeans.lloyd import fit
from genexp.run_dir.checkpoint import list_checkpoints, load_checkpoint
from genexp.run_dir.environment import describe_environment
from genexp.runs.build import Run, build_run
from genexp.runs.config import bind_experiment
from genexp.runs.run import run_experiment
from genexp.seeding import seed_generators
from genexp.technique import Clock, list_techniques
from genexp.training.trainer import initialize_technique

COMPARED_STEPS = 3  # of the comparison of CPU and GPU
LOSS_TOLERANCE = 2e-3  # largest relative difference of their losses in fp32: sums have another order
RESUMED_TECHNIQUES = ("stacked_autoencoder", "vae", "dcgan", "vq_vae", "flow_matching", "deep_kmeans")
LAUNCH_BOUND_TASKS = ("stacked autoencoder", "VAE", "GAN")
MIN_CAPTURE_GAIN, MIN_ENSEMBLE_GAIN, MIN_STYLE_RATE = 3.0, 10.0, 60.0  # the targets
KMEANS_ITERATIONS = 20
Row = dict[str, Any]
Config = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What runs where, and until when."""

    device: torch.device
    is_rehearsal: bool
    deadline: float  # of time.monotonic()

    def choose(self, whole: int, small: int) -> int:
        """Return the size of a task: `whole`, or `small` in a rehearsal."""
        return small if self.is_rehearsal else whole


class CpuDraws(TorchDispatchMode):
    """Mode in which every random operation draws on the CPU, so that two devices get the same numbers."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation of torch. `kwargs` may name the device and the generator."""
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        device = kwargs.get("device") or (tensors[0].device if tensors else torch.device("cpu"))
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type != "cpu":
            kwargs["generator"] = None
        cpu_args, cpu_kwargs = tree_map(_move_to_cpu, (args, kwargs))
        result = func(*cpu_args, **cpu_kwargs)
        if func._schema.is_mutable and tensors:
            return tensors[0].copy_(result)
        return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, result)


def _move_to_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def main(arguments: Sequence[str]) -> None:
    """Run the sections in their order until the time is over. Exit code 1 if one failed, or a result is wrong."""
    parser = argparse.ArgumentParser(prog="benchmark gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="time after which no row starts (default: 8)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with small tasks")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=tuple(SECTIONS), help="default: all sections"
    )
    options = parser.parse_args(arguments)
    if options.out.is_dir() or not options.out.resolve().parent.is_dir():
        parser.error(f"--out: {options.out} is not a file in an existing directory")
    if not (options.rehearse or torch.cuda.is_available()):
        parser.error("no CUDA device. Use --rehearse to test the script on the CPU.")
    device = torch.device("cpu" if options.rehearse else "cuda")
    plan = Plan(device, options.rehearse, time.monotonic() + 60 * options.minutes)
    report: dict[str, Any] = {
        "is_rehearsal": options.rehearse,
        "minutes": options.minutes,
        "environment": describe_environment(device),
        "sections": {},
    }
    logging.disable(logging.WARNING)
    try:
        with _compute_in_float32():
            for name in options.only:
                report["sections"][name] = _run_section(
                    name, plan, lambda: _write_report(options.out, report), report
                )
                _write_report(options.out, report)
    finally:
        logging.disable(logging.NOTSET)
    problems = [
        f"{name}: {section['status']}"
        for name, section in report["sections"].items()
        if section["status"] == "failed" or not all(row.get("is_equal", True) for row in section["rows"])
    ]
    if problems:
        sys.exit("\n".join(["benchmark gpu: failed, or different results:", *problems]))


@contextmanager
def _compute_in_float32() -> Iterator[None]:
    """Keep TensorFloat-32 off in the block, so that both devices compute in float32."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    allowed = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, is_allowed in zip(backends, allowed, strict=True):
            backend.allow_tf32 = is_allowed


def _run_section(name: str, plan: Plan, save: Callable[[], None], report: dict[str, Any]) -> dict[str, Any]:
    started_at = time.monotonic()
    section: dict[str, Any] = {"status": "done", "seconds": 0.0, "rows": []}
    report["sections"][name] = section
    print(f"{name} …", file=sys.stderr)
    try:
        if time.monotonic() > plan.deadline:
            section["status"] = "not started: no time left"
            return section
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for row in SECTIONS[name](plan):
                section["rows"].append(row)
                print(f"  {row}", file=sys.stderr)
                save()
                if time.monotonic() > plan.deadline:
                    section["status"] = "cut off: no time left"
                    break
    except Exception as error:  # the other sections run nevertheless
        section |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        section["traceback"] = traceback.format_exc().splitlines()[-12:]
        print(f"  failed: {section['error']}", file=sys.stderr)
    section["seconds"] = round(time.monotonic() - started_at, 1)
    return section


def _write_report(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _compose_small(name: str, *overrides: str) -> Config:
    """Return the configuration of a small run of the technique `name`."""
    special = ("model.weights=random", "model.scales=[1.0]", "dataset.size=64") if name == "style_transfer" else ()
    recorders = (f"recorders.{recorder}=false" for recorder in ("previews", "figures", "tensorboard", "report"))
    small = (
        "dataset.limit=300",
        "trainer.precision=fp32",
        "trainer.checkpoint_spacing=0",
        "trainer.preview_every=0",
    )
    return compose_config(f"model={name}", *small, *recorders, *special, *overrides)


def compare_losses(plan: Plan) -> Iterator[Row]:
    """Compare the losses of the first steps on CPU and GPU: same weights, batches and random numbers, fp32."""
    for name in list_techniques():
        batches: list[Any] = []
        cpu = _record_losses(_compose_small(name, "device=cpu"), torch.device("cpu"), batches)
        gpu = _record_losses(_compose_small(name, f"device={plan.device.type}"), plan.device, batches)
        differences = [
            abs(ours - theirs) / max(abs(theirs), 1e-6)
            for ours_by_name, theirs_by_name in zip(gpu, cpu, strict=True)
            for ours, theirs in zip(ours_by_name.values(), theirs_by_name.values(), strict=True)
        ]
        yield {
            "technique": name,
            "largest_relative_difference": max(differences),
            "is_equal": max(differences) <= LOSS_TOLERANCE,
            "cpu": cpu[-1],
            "gpu": gpu[-1],
        }


def _record_losses(config: Config, device: torch.device, batches: list[Any]) -> list[dict[str, float]]:
    """Return the losses of the first steps. `batches` is filled by the first call, and used by the second."""
    run = build_run(bind_experiment(config), None)
    losses = []
    with CpuDraws():
        initialize_technique(run.learner, run.data.train_batches, run.config.seed)
        if not batches:
            batches += islice(run.data.batch_source.iter_batches(1), COMPARED_STEPS)
        for step, batch in enumerate(batches, start=1):
            seed_generators(device, run.config.seed, step)
            moved = {stream: values.to(device) for stream, values in batch.items()}
            metrics = run.learner.step(moved, run.data.train_batches, Clock(step, COMPARED_STEPS, COMPARED_STEPS))
            losses.append(
                {key: float(value) for key, value in metrics.items() if "loss" in key or key == "inertia"}
            )
    run.data.batch_source.close()
    return losses


def compare_resumed_runs(plan: Plan) -> Iterator[Row]:
    """Compare weights of a run with those of a run that stopped after an epoch and was resumed, bit for bit."""
    for name in RESUMED_TECHNIQUES:
        overrides = ("trainer.epochs=2", "trainer.deterministic=true", f"device={plan.device.type}")
        config = _compose_small(name, *overrides)
        with tempfile.TemporaryDirectory() as directory:
            whole, resumed = Path(directory, "whole"), Path(directory, "resumed")
            run_experiment(config, whole)
            run_experiment(config, resumed, until_epoch=1)
            run_experiment({**config, "resume": str(resumed)}, resumed)
            states = [load_checkpoint(list_checkpoints(path)[-1])["technique"] for path in (whole, resumed)]
        different = [key for key, value in states[0].items() if not torch.equal(value, states[1][key])]
        yield {"technique": name, "is_equal": not different, "different": different[:5]}


def compare_captured_steps(plan: Plan) -> Iterator[Row]:
    """Compare the weights after steps with and without CUDA graphs (`trainer.capture`)."""
    for name in LAUNCH_BOUND_TASKS:
        weights = []
        for capture in ("false", "true"):
            config = _compose_task(TASKS[name], plan, f"trainer.capture={capture}")
            run = build_run(bind_experiment(config), None)
            time_single_run(run, steps=12)
            weights.append(run.learner.technique.state_dict())
        largest = max(
            float((weights[1][key].float() - value.float()).abs().max()) for key, value in weights[0].items()
        )
        yield {"task": name, "largest_difference": largest, "is_equal": largest <= 1e-5}


def measure_launch_bound_steps(plan: Plan) -> Iterator[Row]:
    """Measure steps/s of small models, with and without CUDA graphs, against an eager loop in plain PyTorch."""
    for name in LAUNCH_BOUND_TASKS:
        task = TASKS[name]
        rates = {"eager PyTorch": _measure_eager_loop(task, plan)}
        for label, capture in (("genexp", "false"), ("genexp with capture", "true")):
            run = build_run(bind_experiment(_compose_task(task, plan, f"trainer.capture={capture}")), None)
            rates[label] = _measure_steps(run, plan.choose(300, 10))
        gain = rates["genexp with capture"] / rates["eager PyTorch"]
        yield {"task": name, "steps/s": rates, "gain": gain, "target": MIN_CAPTURE_GAIN}


def _measure_steps(run: Run, steps: int) -> float:
    """Return the steps/s of a run, without recording."""
    return steps / time_single_run(run, steps)[0]


def _compose_task(task: TrainingTask, plan: Plan, *overrides: str) -> Config:
    return compose_config(
        *(f"experiment={task.preset}", "dataset=mnist_5k", f"device={plan.device.type}"),
        *(f"trainer.batch_size={task.batch_size}", "trainer.precision=fp32"),
        *("trainer.evaluate_every=0", "trainer.preview_every=0", *overrides),
    )


def _measure_eager_loop(task: TrainingTask, plan: Plan) -> float:
    """Return the steps/s of a loop over images in the memory of the device, with torch's own Adam."""
    config = _compose_task(task, plan)
    run, phases = build_run_and_reference(config, task)
    reference_loops.remove_optimizations(run.learner.technique)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(phase.network.parameters(), lr=phase.lr) for phase in phases
    ]
    images = load_images(config).to(plan.device)
    steps, warmup = plan.choose(300, 10), 5
    for step in range(steps + warmup):
        if step == warmup:
            started_at = read_seconds(plan.device)
        indices = torch.randint(len(images), (task.batch_size,), device=plan.device)
        reference_loops.step(phases, optimizers, images[indices].float() / 255)
    return steps / (read_seconds(plan.device) - started_at)


def measure_ensembles(plan: Plan) -> Iterator[Row]:
    """Measure the steps of ensembles of seeds against the same runs one after the other."""
    overrides = ("experiment=stacked_autoencoder_reference", "dataset=mnist_5k", f"device={plan.device.type}")
    configs = [compose_config(*overrides, "trainer.batch_size=50", f"seed={seed}") for seed in range(4)]
    steps = plan.choose(60, 5)
    seconds = [time_single_run(build_run(bind_experiment(config), None), steps)[0] for config in configs]
    sequential = steps * len(configs) / sum(seconds)  # steps/s of all runs
    for size in (16, 64, 256) if not plan.is_rehearsal else (2, 4):
        members = [compose_config(*overrides, "trainer.batch_size=50", f"seed={seed}") for seed in range(size)]
        together = steps * size / time_ensemble(members, steps)[0]
        rates = {"ensemble": together, "one after the other": sequential}
        target = MIN_ENSEMBLE_GAIN if size == 64 else None
        yield {"seeds": size, "steps/s": rates, "gain": together / sequential, "target": target}


def measure_kmeans(plan: Plan) -> Iterator[Row]:
    """Measure the iterations/s of Lloyd's algorithm, against fast-pytorch-kmeans where it is installed."""
    for points, features, clusters in ((65_536, 1024, 32), (1_000_000, 128, 1024)):
        torch.manual_seed(0)
        rows = torch.rand(plan.choose(points, 2000), features, device=plan.device)
        clusters = plan.choose(clusters, 8)
        initial_centers = rows[torch.randperm(len(rows), device=plan.device)[:clusters]]
        rates = {
            "genexp": _measure_fits(
                partial(fit, [rows], len(rows), initial_centers[None], KMEANS_ITERATIONS), plan
            )
        }
        if find_spec("fast_pytorch_kmeans") is not None:
            fit_rival = partial(_fit_rival, rows, initial_centers)
            rates["fast-pytorch-kmeans"] = _measure_fits(fit_rival, plan)
        gain = rates["genexp"] / rates["fast-pytorch-kmeans"] if len(rates) > 1 else None
        yield {"points": list(rows.shape), "clusters": clusters, "iterations/s": rates, "gain": gain}


def _fit_rival(rows: Tensor, initial_centers: Tensor) -> None:
    rival = importlib.import_module("fast_pytorch_kmeans")
    rival.KMeans(len(initial_centers), max_iter=KMEANS_ITERATIONS, tol=0).fit_predict(
        rows, initial_centers.clone()
    )


def _measure_fits(run_fit: Callable[[], object], plan: Plan) -> float:
    """Return the iterations/s of the second fit. The first one warms up."""
    for _ in range(2):
        started_at = read_seconds(plan.device)
        run_fit()
        seconds = read_seconds(plan.device) - started_at
    return KMEANS_ITERATIONS / seconds


def measure_style_transfer(plan: Plan) -> Iterator[Row]:
    """Measure L-BFGS iterations/s of style transfer with random filters, which cost as much as trained ones."""
    size = plan.choose(512, 64)
    for precision in ("fp32", "bf16"):
        overrides = ("experiment=style_transfer_reference", "model.weights=random", f"dataset.size={size}")
        config = compose_config(*overrides, f"trainer.precision={precision}", f"device={plan.device.type}")
        run = build_run(bind_experiment(config), None)
        initialize_technique(run.learner, run.data.train_batches, run.config.seed)
        rate = _measure_steps(run, plan.choose(120, 2))
        yield {"pixels": size, "precision": precision, "iterations/s": rate, "target": MIN_STYLE_RATE}


def measure_flow_matching(plan: Plan) -> Iterator[Row]:
    """Measure the training images/s of flow matching, in fp32 and bf16, with and without CUDA graphs."""
    batch_size = plan.choose(512, 32)
    for precision, capture in (("fp32", "false"), ("bf16", "false"), ("bf16", "true")):
        overrides = ("model=flow_matching", f"trainer.batch_size={batch_size}", f"trainer.precision={precision}")
        config = compose_config(*overrides, f"trainer.capture={capture}", f"device={plan.device.type}")
        run = build_run(bind_experiment(config), None)
        rate = batch_size * _measure_steps(run, plan.choose(60, 2))
        yield {"batch_size": batch_size, "precision": precision, "capture": capture, "images/s": rate}


SECTIONS: dict[str, Callable[[Plan], Iterator[Row]]] = {  # in the order of their importance
    "losses": compare_losses,
    "resume": compare_resumed_runs,
    "capture": compare_captured_steps,
    "launch_bound": measure_launch_bound_steps,
    "ensembles": measure_ensembles,
    "kmeans": measure_kmeans,
    "style_transfer": measure_style_transfer,
    "flow_matching": measure_flow_matching,
}
