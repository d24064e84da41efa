"""What records cost: the pauses between a step and the next, in which nothing is learned."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmark.clock import now
from benchmark.compose import configuration
from benchmark.paired_rounds import Comparison, compare
from benchmark.step_timer import Watch, watched
from genexp.runs.build import Run
from genexp.seeding import seed_generators
from genexp.snapshot import Snapshot
from genexp.training.trainer import evaluating

SPACING = 30.0  # seconds between two checkpoints at least, by default
LOOKS = ("trainer.evaluate_every=1", "trainer.preview_every=1")
NO_LOOKS = ("trainer.evaluate_every=0", "trainer.preview_every=0")


@dataclass(frozen=True)
class Work:
    """What is trained, and how long in a round."""

    model: str
    steps: int
    images: int  # of the training split, where epochs are to end often


WORKS = (
    Work("stacked_autoencoder", 2000, 2000),
    Work("vae", 1000, 2000),
    Work("conv_autoencoder", 300, 1000),
    Work("dcgan", 60, 512),
)


def run(rounds: int, works: tuple[Work, ...] = WORKS) -> list[Comparison]:
    """Measure what records cost. Raises AssertionError where they change what is learned."""
    rows = []
    for work in works:
        _check(work)
        often = (f"dataset.limit={work.images}", f"trainer.max_steps={work.steps // 2}")
        plain = [_watched(work, *NO_LOOKS) for _ in range(rounds)]
        saving = [_watched(work, *NO_LOOKS, *often, "trainer.checkpoint_spacing=0") for _ in range(rounds)]
        looking = [_watched(work, *LOOKS, *often) for _ in range(rounds)]
        unrecorded = [watch.seconds - sum(seconds for seconds, _ in watch.pauses) for watch in plain]
        saved = [
            1 / (1 + _mean_pause(watch, lambda shot: shot.checkpoint is not None) / SPACING) for watch in saving
        ]
        looks = [_mean_pause(watch, lambda shot: bool(shot.test)) for watch in looking]
        own = [_seconds_of_looks(watch.built) for watch in looking]
        rows += [
            compare(
                f"{work.model}, every step recorded",
                "nothing recorded",
                [work.steps / watch.seconds for watch in plain],
                [work.steps / seconds for seconds in unrecorded],
                unit="steps/s",
            ),
            compare(
                f"{work.model}, a checkpoint every {SPACING:.0f} s", "none", saved, [1.0] * rounds, unit="speed"
            ),
            compare(f"{work.model}, a look recorded", "its computation alone", looks, own, unit="s"),
        ]
    return rows


def _watched(work: Work, *overrides: str) -> Watch:
    words = (f"model={work.model}", "dataset=mnist_5k", "device=cpu", f"trainer.max_steps={work.steps}")
    return watched(configuration(*words, *overrides))


def _mean_pause(watch: Watch, counts: Callable[[Snapshot], bool]) -> float:
    return statistics.mean(seconds for seconds, shot in watch.pauses if shot is not None and counts(shot))


def _seconds_of_looks(built: Run, *, times: int = 3) -> float:
    """Return how long an evaluation and a preview take by themselves."""
    learner, material = built.learner, built.material
    begun = now()
    for _ in range(times):
        seed_generators(learner.device, built.seed, "look")
        with evaluating(learner.shown):
            learner.shown.evaluate(material.test)
            learner.shown.preview(material.examples)
    return (now() - begun) / times


def _check(work: Work) -> None:
    """Compare the training metrics of a run that records all it can with those of one that records little."""
    short = ("dataset.limit=256", "trainer.max_steps=20")
    often = _curves(_watched(work, *LOOKS, *short, "trainer.checkpoint_spacing=0"))
    never = _curves(_watched(work, *NO_LOOKS, *short, "trainer.checkpoint_every=0"))
    for name, curve in often.items():
        assert np.array_equal(curve, never[name]), f"{work.model}: records change the {name}"


def _curves(watch: Watch) -> dict[str, np.ndarray]:
    names = watch.snapshots[-1].train
    return {
        name: np.concatenate([shot.train[name].values for shot in watch.snapshots if shot.train]) for name in names
    }
