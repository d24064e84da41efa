"""Evaluation of a finished run on the test split: its own scores, probes, clusters, samples and likelihood."""

from __future__ import annotations

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
from genexp.data.sampling import subset, subset_split
from genexp.data.stream import SplitBatches
from genexp.errors import ConfigError, GenexpError
from genexp.images.binarize import BINARIZATIONS
from genexp.metrics.clustering import clustering_scores
from genexp.metrics.frechet import inception_scores, plan_kid_subsets
from genexp.metrics.generation import MAX_REAL_IMAGES, GenerationMetrics, generate_batches
from genexp.metrics.probes import knn_accuracy, linear_probe_accuracy
from genexp.metrics.scores import mean_scores
from genexp.networks.inception import Inception
from genexp.run_dir.environment import describe_environment
from genexp.run_dir.files import write_json
from genexp.run_dir.paths import EVALUATION_FILE
from genexp.runs.build import EVALUATION_BATCH_SIZE
from genexp.runs.load import LoadedRun
from genexp.technique import Batch, Batches, get_inputs

MAX_PROBE_SAMPLES = (
    10_000  # maximum numbers of training codes that fit the probes and of test codes that score them
)
NUM_NEIGHBORS = 10  # of the k-nearest-neighbor probe
PIXEL_DESCRIPTIONS = {  # key of BINARIZATIONS, or "points" → values whose likelihood is computed
    "drawn": "bits sampled with the gray value as probability",
    "fixed": "bits sampled once for each image",
    "gray": "gray values in [0, 1], as a density",
    "points": "points, scaled as in training, as a density",
}


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation."""

    nll_samples: int  # latent samples per image of the likelihood estimate; 0 skips it
    nll_images: int | None = None  # test images of that estimate, a fixed random subset; None for all
    inception: Inception | None = None  # network of the Inception scores; None skips them


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run, and the settings they were measured with."""

    run: LoadedRun
    scores: Mapping[str, float]
    skip_reasons: Mapping[str, str]  # key of `MEASURES`, or group of scores → reason why it has no scores
    used_options: Mapping[str, Any]  # settings that the scores depend on

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as plain values for JSON, which has no NaN and infinity: they become None."""
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
            "options": dict(self.used_options),
            "environment": describe_environment(run.device),
        }


@dataclass
class _EvaluationState:
    """Mutable state of an evaluation in progress."""

    run: LoadedRun
    options: EvaluationOptions
    scores: dict[str, float] = field(default_factory=dict)  # of the measures so far
    used_options: dict[str, Any] = field(default_factory=dict)  # settings that the scores depend on
    skip_reasons: dict[str, str] = field(default_factory=dict)  # name of scores → reason why there are none


def evaluate(run: LoadedRun, options: EvaluationOptions, on_measure_start: Callable[[str], None]) -> Evaluation:
    """Return all scores that apply to the technique of `run`.

    `on_measure_start` is called with the key in `MEASURES` before each measure. A measure that raises
    GenexpError is skipped, and the reason is recorded. Raises GenexpError if the technique's own evaluation does.
    """
    state = _EvaluationState(run, options)
    for name, measure in MEASURES.items():
        on_measure_start(name)
        try:
            # The same seed as in training: it reproduces the technique's own scores.
            with run.seeded_eval_mode("evaluate"):
                state.scores |= measure(state)
        except GenexpError as error:
            if measure is compute_technique_scores:
                raise
            state.skip_reasons[name] = str(error)
    return Evaluation(run, state.scores, state.skip_reasons, state.used_options)


def compute_technique_scores(state: _EvaluationState) -> dict[str, float]:
    """Return the scores that the technique reports during training."""
    technique = state.run.technique
    state.used_options |= technique.get_evaluation_options()
    state.skip_reasons |= technique.list_skipped_scores()
    return technique.evaluate(state.run.get_test_batches())


def compute_latent_scores(state: _EvaluationState) -> dict[str, float]:
    """Return the accuracies, in [0, 1], of predicting labels from latent codes: k-NN and linear probe.

    The result is empty without labels or codes.
    """
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
        "neighbors": NUM_NEIGHBORS,
    }
    return {
        "knn_accuracy": knn_accuracy(*train, *test, neighbors=NUM_NEIGHBORS),
        "linear_probe_accuracy": linear_probe_accuracy(*train, *test),
    }


def encode_with_labels(run: LoadedRun, batches: Batches) -> tuple[Tensor, Tensor] | None:
    """Return codes `(samples, features)` and labels `(samples,)` on the CPU, or None without codes or labels."""
    codes, labels = [], []
    for batch in batches:
        code = run.technique.encode(batch) if "label" in batch else None
        if code is None:
            return None
        codes.append(code.float().cpu())
        labels.append(batch["label"].cpu())
    return torch.cat(codes), torch.cat(labels)


def compute_cluster_scores(state: _EvaluationState) -> dict[str, float]:
    """Return the agreement of clusters with labels: "acc", "nmi" and "ari", also with the prefix "train_".

    Scores of the test split are omitted if the technique's own scores include them. The result is empty without
    clusters or labels.
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
    """Return "acc", "nmi" and "ari" of the clusters that `technique` assigns to labeled `batches`."""
    pairs = [(batch["label"].cpu(), technique.assign(batch).cpu()) for batch in batches]
    labels, clusters = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return clustering_scores(labels, clusters)


def compute_generation_scores(state: _EvaluationState) -> dict[str, float]:
    """Return Fréchet distance, precision, recall, density and coverage of generated against test images.

    There are as many generated as real images, since the scores depend on both numbers. The result is empty if the
    technique cannot sample, if its own scores include the Fréchet distance, and for points.
    """
    technique = state.run.technique
    has_scores = any(name.startswith("frechet_") for name in state.scores)
    if not isinstance(technique, CanSample) or has_scores or state.run.dataset.spec.is_table:
        return {}
    metrics = GenerationMetrics(state.run.dataset)
    features = metrics.generate_features(technique.sample)
    state.used_options |= {"generated": metrics.num_generated, "real": metrics.num_real}
    reason = metrics.find_skip_reason()
    if reason is not None:
        state.skip_reasons["neighborhood"] = reason
    return metrics.compute_scores(state.run.get_test_batches(), features)


def compute_inception_scores(state: _EvaluationState) -> dict[str, float]:
    """Return FID and KID of generated against test images, in Inception features.

    There are as many generated as real images, at most MAX_REAL_IMAGES. The result is empty without the option.
    Raises ConfigError if the technique cannot generate images.
    """
    run, inception = state.run, state.options.inception
    if inception is None:
        return {}
    technique = run.technique
    if not isinstance(technique, CanSample) or run.dataset.spec.is_table:
        raise ConfigError(
            f"model={technique.name}: generates no images on dataset={run.dataset.name}. Remove --inception."
        )
    count = min(len(run.test_loader), MAX_REAL_IMAGES)
    test_batches = SplitBatches(run.test_loader, EVALUATION_BATCH_SIZE, limit=count)
    real = torch.cat([inception.extract_features(batch["image"]) for batch in test_batches])
    images = generate_batches(technique.sample, count)
    fake = torch.cat([inception.extract_features(batch) for batch in images])
    scores = inception_scores(real, fake)
    state.used_options |= {
        "inception_generated": len(fake),
        "inception_real": len(real),
        "inception_weights": inception.weights_checksum,
        **plan_kid_subsets(count),
    }
    return scores


def compute_likelihood_scores(state: _EvaluationState) -> dict[str, float]:
    """Return the mean negative log-likelihood of test images in nats per image, and its standard error.

    The metric's name has the number of latent samples and the pixels: nll_5000 is for drawn bits (Salakhutdinov &
    Murray 2008), nll_5000_fixed for fixed bits, nll_5000_gray for gray values, as a density. For points it is
    nll_5000_points, also a density.
    """
    technique, samples = state.run.technique, state.options.nll_samples
    if not isinstance(technique, CanEstimateLikelihood) or not samples:
        return {}
    pixels = technique.evaluated_pixels
    kind = "points" if state.run.dataset.spec.is_table else pixels
    name = f"nll_{samples}" if kind == "drawn" else f"nll_{samples}_{kind}"

    def score(batch: Batch) -> dict[str, Tensor]:
        nll = -technique.log_likelihood(BINARIZATIONS[pixels](get_inputs(batch)), samples)
        return {name: nll, "squares": nll.double().square()}

    loader, count = state.run.test_loader, state.options.nll_images
    batches: Batches = state.run.get_test_batches()
    num_images = len(loader)
    if count is not None and count < num_images:
        split, num_images = subset_split(state.run.dataset.test, count), count
        batches = SplitBatches(make_loader(split, state.run.device), EVALUATION_BATCH_SIZE)
    scores = mean_scores(batches, score)
    variance = max(0.0, scores.pop("squares") - scores[name] ** 2)
    state.used_options |= {
        "nll_samples": samples,
        "nll_pixels": PIXEL_DESCRIPTIONS[kind],
        "nll_images": num_images,
        "nll_standard_error": math.sqrt(variance / num_images),
    }
    return scores


MEASURES: Mapping[str, Callable[[_EvaluationState], dict[str, float]]] = {
    "technique": compute_technique_scores,
    "latent": compute_latent_scores,
    "clusters": compute_cluster_scores,
    "generation": compute_generation_scores,
    "inception": compute_inception_scores,
    "likelihood": compute_likelihood_scores,
}


def write_evaluation(evaluation: Evaluation) -> Path:
    """Write `evaluation.json` into the run directory, atomically, and return its path. Raises OSError."""
    path = evaluation.run.run_dir / EVALUATION_FILE
    write_json(path, evaluation.to_dict())
    return path
