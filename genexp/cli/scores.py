"""All that can be measured of a run's technique on the test split."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genexp.capabilities import CanCluster, CanEstimateLikelihood, CanSample
from genexp.data.loading import make_loader
from genexp.data.sampling import subset
from genexp.data.stream import SplitBatches
from genexp.errors import GenexpError
from genexp.metrics.clustering import clustering_scores
from genexp.metrics.generation import MAX_REAL_IMAGES, GenerationMetrics
from genexp.metrics.probes import knn_accuracy, linear_probe_accuracy
from genexp.metrics.scores import mean_scores
from genexp.run_dir.environment import describe_environment
from genexp.run_dir.paths import EVALUATION_FILE
from genexp.runs.build import EVALUATION_BATCH_SIZE
from genexp.runs.load import LoadedRun
from genexp.technique import Batch, Batches

MAX_PROBE_SAMPLES = 10_000  # training codes that the probes learn from, and test codes that judge them, at most
NEIGHBORS = 10
GENERATION_BATCH_SIZE = 500


@dataclass(frozen=True)
class EvaluationOptions:
    """What a user can choose."""

    nll_samples: int  # of each image; 0 leaves the likelihood out


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and how."""

    run: LoadedRun
    scores: Mapping[str, float]
    skip_reasons: Mapping[str, str]  # measure → why
    options: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values; null for a NaN or an infinity, which JSON does not know."""
        run = self.run
        return {
            "run": str(run.run_dir),
            "model": run.technique.name,
            "dataset": run.dataset.name,
            "split": "test",
            "samples": len(run.test_loader),
            "checkpoint": os.path.relpath(run.checkpoint_path, run.run_dir),
            "step": run.step,
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.scores.items()},
            "left_out": dict(self.skip_reasons),
            "options": dict(self.options),
            "environment": describe_environment(run.device),
        }


@dataclass
class _EvaluationState:
    """An evaluation that is going on."""

    run: LoadedRun
    options: EvaluationOptions
    scores: dict[str, float] = field(default_factory=dict)
    used_options: dict[str, Any] = field(default_factory=dict)  # settings that the scores depend on


def evaluate(run: LoadedRun, options: EvaluationOptions, on_measure_start: Callable[[str], None]) -> Evaluation:
    """Return every score that makes sense for the technique. `tell` hears what is being measured.

    Raises GenexpError where the technique's own evaluation does; other measures are then left out.
    """
    state = _EvaluationState(run, options)
    skip_reasons: dict[str, str] = {}
    for name, measure in MEASURES.items():
        on_measure_start(name)
        try:
            # The seed of evaluations during training: the technique's own scores are those it had then.
            with run.seeded_eval_mode("evaluate"):
                state.scores |= measure(state)
        except GenexpError as error:
            if measure is technique_scores:
                raise
            skip_reasons[name] = str(error)
    return Evaluation(run, state.scores, skip_reasons, state.used_options)


def technique_scores(state: _EvaluationState) -> dict[str, float]:
    """Return what the technique is judged by in training."""
    return state.run.technique.evaluate(state.run.get_test_batches())


def latent_scores(state: _EvaluationState) -> dict[str, float]:
    """Return how well labels can be told from latent codes."""
    run = state.run
    probe_split = subset(run.dataset, MAX_PROBE_SAMPLES).train
    train = encode_with_labels(run, SplitBatches(make_loader(probe_split, run.device), EVALUATION_BATCH_SIZE))
    if train is None:
        return {}
    test = encode_with_labels(run, SplitBatches(run.test_loader, EVALUATION_BATCH_SIZE, limit=MAX_PROBE_SAMPLES))
    assert test is not None
    state.used_options |= {
        "probe_train_samples": len(probe_split),
        "probe_test_samples": len(test[0]),
        "neighbors": NEIGHBORS,
    }
    return {
        "knn_accuracy": knn_accuracy(*train, *test, neighbors=NEIGHBORS),
        "linear_probe_accuracy": linear_probe_accuracy(*train, *test),
    }


def encode_with_labels(run: LoadedRun, batches: Batches) -> tuple[Tensor, Tensor] | None:
    """Return codes (samples, features) and labels (samples,) on the CPU; None where there are no such things."""
    codes, labels = [], []
    for batch in batches:
        code = run.technique.encode(batch) if "label" in batch else None
        if code is None:
            return None
        codes.append(code.float().cpu())
        labels.append(batch["label"].cpu())
    return torch.cat(codes), torch.cat(labels)


def cluster_scores(state: _EvaluationState) -> dict[str, float]:
    """Return how well clusters agree with labels: "train_acc", ... of the training split, and the test split's.

    The latter only where the technique has not said so itself.
    """
    run = state.run
    technique = run.technique
    if not isinstance(technique, CanCluster) or "label" not in run.dataset.test.streams:
        return {}
    train = SplitBatches(make_loader(run.dataset.train, run.device), EVALUATION_BATCH_SIZE)
    train_scores = {f"train_{name}": score for name, score in evaluate_clusters(technique, train).items()}
    return (
        train_scores
        if "acc" in state.scores
        else {**evaluate_clusters(technique, run.get_test_batches()), **train_scores}
    )


def evaluate_clusters(technique: CanCluster, batches: Batches) -> dict[str, float]:
    """Return "acc", "nmi" and "ari" of a technique's clusters."""
    pairs = [(batch["label"].cpu(), technique.assign(batch).cpu()) for batch in batches]
    labels, clusters = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return clustering_scores(labels, clusters)


def generation_scores(state: _EvaluationState) -> dict[str, float]:
    """Return how like held-out images new ones are, unless the technique has said so itself."""
    technique = state.run.technique
    if not isinstance(technique, CanSample) or "frechet" in state.scores:
        return {}
    metrics = GenerationMetrics(state.run.dataset)
    # As many as there are real ones to compare with, as for the GANs: these scores depend on the number.
    count = min(len(state.run.test_loader), MAX_REAL_IMAGES)
    features = [
        metrics.extract_features(technique.sample(GENERATION_BATCH_SIZE)[: count - start])
        for start in range(0, count, GENERATION_BATCH_SIZE)
    ]
    state.used_options["generated"] = count
    return metrics.compute_scores(state.run.get_test_batches(), features)


def likelihood_scores(state: _EvaluationState) -> dict[str, float]:
    """Return the negative log-likelihood of binary images, in nats.

    Each pixel is drawn with its brightness as the probability (Salakhutdinov & Murray 2008).
    """
    technique, samples = state.run.technique, state.options.nll_samples
    if not isinstance(technique, CanEstimateLikelihood) or not samples:
        return {}

    def score(batch: Batch) -> dict[str, Tensor]:
        return {f"nll_{samples}": -technique.log_likelihood(batch["image"].bernoulli(), samples)}

    state.used_options |= {"nll_samples": samples, "nll_pixels": "drawn, with brightness as the probability"}
    return mean_scores(state.run.get_test_batches(), score)


MEASURES: Mapping[str, Callable[[_EvaluationState], dict[str, float]]] = {
    "technique": technique_scores,
    "latent": latent_scores,
    "clusters": cluster_scores,
    "generation": generation_scores,
    "likelihood": likelihood_scores,
}


def write_evaluation(evaluation: Evaluation) -> Path:
    """Write `evaluation.json` into the run's folder, whole or not at all. Raises OSError."""
    path = evaluation.run.run_dir / EVALUATION_FILE
    temporary_path = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary_path.write_text(
            json.dumps(evaluation.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        temporary_path.replace(path)
    finally:
        temporary_path.unlink(missing_ok=True)
    return path
