"""Base class of techniques whose `evaluate` compares generated images with test images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from genexp.capabilities import CanSample
from genexp.data.dataset import Dataset
from genexp.device import check_memory
from genexp.metrics.generation import GenerationMetrics
from genexp.technique import Technique

SAMPLES_KEY = "model.evaluation_samples"
MIN_FEATURE_BYTES = 32  # lower bound of the memory for the features of one generated image


class SampleScoringTechnique(Technique, CanSample):
    """Technique with `config.evaluation_samples`, the number of images that an evaluation generates."""

    config: Any  # has `evaluation_samples`
    _generation_metrics: GenerationMetrics | None = None

    @property
    def generation_metrics(self) -> GenerationMetrics:
        """Metrics of generated images. They keep the features of the real images."""
        assert self._generation_metrics is not None, "prepare_evaluation() comes first"
        return self._generation_metrics

    def prepare_evaluation(self, dataset: Dataset) -> None:
        count = self.config.evaluation_samples
        check_memory(count * MIN_FEATURE_BYTES, f"{SAMPLES_KEY}={count}")
        self._generation_metrics = GenerationMetrics(dataset, count)

    def get_evaluation_options(self) -> Mapping[str, Any]:
        metrics = self.generation_metrics
        return {"generated": metrics.num_generated, "real": metrics.num_real}

    def list_skipped_scores(self) -> Mapping[str, str]:
        reason = self.generation_metrics.find_skip_reason(SAMPLES_KEY)
        return {} if reason is None else {"neighborhood": reason}
