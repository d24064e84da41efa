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
from genexp.data.stream import SplitBatches
from genexp.data.subset import subset
from genexp.errors import GenexpError
from genexp.metrics.averaging import mean_scores
from genexp.metrics.clustering import clustering_scores
from genexp.metrics.generation import MAX_REAL_IMAGES, GenerationMetrics
from genexp.metrics.probes import knn_accuracy, linear_probe_accuracy
from genexp.run_dir.environment import describe_environment
from genexp.runs.build import EVALUATION_BATCH
from genexp.runs.load import FinishedRun
from genexp.technique import Batch, Batches

FILE_NAME = "evaluation.json"
PROBE_SAMPLES = 10_000  # training codes that the probes learn from, and test codes that judge them, at most
NEIGHBOURS = 10
AT_ONCE = 500


@dataclass(frozen=True)
class Options:
    """What a user can choose."""

    nll_samples: int  # of each image; 0 leaves the likelihood out


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and how."""

    run: FinishedRun
    scores: Mapping[str, float]
    left_out: Mapping[str, str]  # measure → why
    options: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values; null for a NaN or an infinity, which JSON does not know."""
        run = self.run
        return {
            "run": str(run.folder),
            "model": run.technique.name,
            "dataset": run.dataset.name,
            "split": "test",
            "samples": len(run.held_out),
            "checkpoint": os.path.relpath(run.checkpoint, run.folder),
            "step": run.step,
            "metrics": {name: value if math.isfinite(value) else None for name, value in self.scores.items()},
            "left_out": dict(self.left_out),
            "options": dict(self.options),
            "environment": describe_environment(run.device),
        }


@dataclass
class _Work:
    """An evaluation that is going on."""

    run: FinishedRun
    options: Options
    scores: dict[str, float] = field(default_factory=dict)
    used: dict[str, Any] = field(default_factory=dict)  # settings that the scores depend on


def evaluate(run: FinishedRun, options: Options, tell: Callable[[str], None]) -> Evaluation:
    """Return every score that makes sense for the technique. `tell` hears what is being measured.

    Raises GenexpError where the technique's own evaluation does; other measures are then left out.
    """
    work = _Work(run, options)
    left_out: dict[str, str] = {}
    for name, measure in MEASURES.items():
        tell(name)
        try:
            # The seed of evaluations during training: the technique's own scores are those it had then.
            with run.looking("evaluate"):
                work.scores |= measure(work)
        except GenexpError as error:
            if measure is own_scores:
                raise
            left_out[name] = str(error)
    return Evaluation(run, work.scores, left_out, work.used)


def own_scores(work: _Work) -> dict[str, float]:
    """Return what the technique is judged by in training."""
    return work.run.technique.evaluate(work.run.test())


def latent_scores(work: _Work) -> dict[str, float]:
    """Return how well labels can be told from latent codes."""
    run = work.run
    few = subset(run.dataset, PROBE_SAMPLES).train
    train = codes_and_labels(run, SplitBatches(make_loader(few, run.device), EVALUATION_BATCH))
    if train is None:
        return {}
    test = codes_and_labels(run, SplitBatches(run.held_out, EVALUATION_BATCH, limit=PROBE_SAMPLES))
    assert test is not None
    work.used |= {"probe_train_samples": len(few), "probe_test_samples": len(test[0]), "neighbours": NEIGHBOURS}
    return {
        "knn_accuracy": knn_accuracy(*train, *test, neighbors=NEIGHBOURS),
        "linear_probe_accuracy": linear_probe_accuracy(*train, *test),
    }


def codes_and_labels(run: FinishedRun, samples: Batches) -> tuple[Tensor, Tensor] | None:
    """Return codes (samples, features) and labels (samples,) on the CPU; None where there are no such things."""
    codes, labels = [], []
    for batch in samples:
        code = run.technique.encode(batch) if "label" in batch else None
        if code is None:
            return None
        codes.append(code.float().cpu())
        labels.append(batch["label"].cpu())
    return torch.cat(codes), torch.cat(labels)


def cluster_scores(work: _Work) -> dict[str, float]:
    """Return how well clusters agree with labels: "train_acc", ... of the training split, and the test split's.

    The latter only where the technique has not said so itself.
    """
    run = work.run
    technique = run.technique
    if not isinstance(technique, CanCluster) or "label" not in run.dataset.test.streams:
        return {}
    train = SplitBatches(make_loader(run.dataset.train, run.device), EVALUATION_BATCH)
    learned = {f"train_{name}": score for name, score in agreement(technique, train).items()}
    return learned if "acc" in work.scores else {**agreement(technique, run.test()), **learned}


def agreement(technique: CanCluster, samples: Batches) -> dict[str, float]:
    """Return "acc", "nmi" and "ari" of a technique's clusters."""
    pairs = [(batch["label"].cpu(), technique.assign(batch).cpu()) for batch in samples]
    labels, clusters = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return clustering_scores(labels, clusters)


def generation_scores(work: _Work) -> dict[str, float]:
    """Return how like held-out images new ones are, unless the technique has said so itself."""
    technique = work.run.technique
    if not isinstance(technique, CanSample) or "frechet" in work.scores:
        return {}
    judge = GenerationMetrics(work.run.dataset)
    # As many as there are real ones to compare with, as for the GANs: these scores depend on the number.
    count = min(len(work.run.held_out), MAX_REAL_IMAGES)
    features = [judge.extract_features(technique.sample(AT_ONCE)[: count - done]) for done in range(0, count, AT_ONCE)]
    work.used["generated"] = count
    return judge.compute_scores(work.run.test(), features)


def likelihood_scores(work: _Work) -> dict[str, float]:
    """Return the negative log-likelihood of binary images, in nats.

    Each pixel is drawn with its brightness as the probability (Salakhutdinov & Murray 2008).
    """
    technique, samples = work.run.technique, work.options.nll_samples
    if not isinstance(technique, CanEstimateLikelihood) or not samples:
        return {}

    def score(batch: Batch) -> dict[str, Tensor]:
        return {f"nll_{samples}": -technique.log_likelihood(batch["image"].bernoulli(), samples)}

    work.used |= {"nll_samples": samples, "nll_pixels": "drawn, with brightness as the probability"}
    return mean_scores(work.run.test(), score)


MEASURES: Mapping[str, Callable[[_Work], dict[str, float]]] = {
    "technique": own_scores,
    "latent": latent_scores,
    "clusters": cluster_scores,
    "generation": generation_scores,
    "likelihood": likelihood_scores,
}


def write_evaluation(evaluation: Evaluation) -> Path:
    """Write `evaluation.json` into the run's folder, whole or not at all. Raises OSError."""
    path = evaluation.run.folder / FILE_NAME
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(
            json.dumps(evaluation.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
