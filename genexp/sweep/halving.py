"""Successive halving (Jamieson & Talwalkar 2016): only the best configurations continue after each rung."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from genexp.config import require
from genexp.errors import ConfigError
from genexp.run_dir.status import read_job_status
from genexp.sweep.config import hash_config
from genexp.sweep.job import Job


@dataclass
class HalvingConfig:
    """Node `sweep.halving` of conf/train.yaml."""

    factor: int | None  # 1/factor of the configurations continue after a rung (at least one); None: no halving
    epochs: int  # epoch of the first rung; each next rung is at `factor` times as many epochs

    def __post_init__(self) -> None:
        require(self.factor is None or self.factor > 1, "factor", self.factor, "must be at least 2, or null")
        require(self.epochs > 0, "epochs", self.epochs, "must be at least 1")


@dataclass(frozen=True)
class Rung:
    """Epoch at which only the best configurations continue."""

    epoch: int  # complete epochs
    n_candidates: int  # configurations that train up to this rung
    n_survivors: int  # configurations that continue after it

    def __str__(self) -> str:
        return f"epoch {self.epoch}: the best {self.n_survivors} of {self.n_candidates} configurations continue"


class SuccessiveHalving:
    """Rungs of a sweep, and the selection of the jobs that continue after each of them.

    Jobs that differ only in their seed are one configuration. Configurations are ranked by the mean over
    their seeds. The selection depends only on the metrics that the jobs logged. A resumed sweep therefore
    selects the same jobs.
    """

    def __init__(self, config: HalvingConfig, jobs: Sequence[Job]) -> None:
        """Plan the rungs.

        Raises ConfigError if the jobs have different objectives, or if a rung is at an epoch without evaluation.
        """
        self._config = config
        self._jobs = list(jobs) if config.factor is not None else []
        self._config_digests = {job.number: hash_config(job.config, exclude=("seed",)) for job in self._jobs}
        self.rungs = list(self._plan_rungs()) if self._jobs else []
        if self.rungs:
            self._check_configs()

    @property
    def expected_work(self) -> float | None:
        """Number of complete jobs with the same total of epochs as the sweep; None without halving."""
        if not self.rungs:
            return None
        n_seeds = len(self._jobs) / self.rungs[0].n_candidates
        epochs, previous_epoch = 0.0, 0
        for rung in self.rungs:
            epochs += rung.n_candidates * (rung.epoch - previous_epoch)
            previous_epoch = rung.epoch
        return (
            n_seeds
            * (epochs + self.rungs[-1].n_survivors * (self._max_epochs - previous_epoch))
            / self._max_epochs
        )

    def has_reached(self, job: Job, rung: Rung) -> bool:
        """Return True if `job` has finished, or was stopped after its evaluation at `rung`."""
        state = read_job_status(job.run_dir).state
        return state == "finished" or (
            state == "stopped" and self._find_objective(job, rung, min_epoch=rung.epoch) is not None
        )

    def select_survivors(self, jobs: Sequence[Job], rung: Rung) -> list[Job]:
        """Return those of `jobs` that continue after `rung`. A tie is decided by the order of `jobs`."""
        costs: dict[str, list[float]] = {}
        for job in jobs:
            costs.setdefault(self._config_digests[job.number], []).append(self._compute_cost(job, rung))
        means = {digest: sum(values) / len(values) for digest, values in costs.items()}
        surviving_digests = sorted(means, key=lambda configuration: means[configuration])[: rung.n_survivors]
        return [job for job in jobs if self._config_digests[job.number] in surviving_digests]

    @property
    def _max_epochs(self) -> int:
        return max(job.config.trainer.epochs for job in self._jobs)

    def _plan_rungs(self) -> Iterator[Rung]:
        factor = self._config.factor
        assert factor is not None
        epoch, n_candidates = self._config.epochs, len(set(self._config_digests.values()))
        while epoch < self._max_epochs and n_candidates > 1:
            yield Rung(epoch, n_candidates, max(1, n_candidates // factor))
            epoch, n_candidates = epoch * factor, max(1, n_candidates // factor)

    def _check_configs(self) -> None:
        objectives = {f"{job.config.trainer.objective} ({job.config.trainer.direction})" for job in self._jobs}
        if len(objectives) > 1:
            raise ConfigError(
                f"sweep.halving: jobs have different objectives ({', '.join(sorted(objectives))}). "
                f"Set trainer.objective and trainer.direction."
            )
        for job in self._jobs:
            evaluate_every = job.config.trainer.evaluate_every
            if evaluate_every == 0 or self._config.epochs % evaluate_every:
                first_rung_epoch = self._config.epochs
                raise ConfigError(
                    f"sweep.halving.epochs={first_rung_epoch}: must be a multiple of "
                    f"trainer.evaluate_every={evaluate_every}. Change one of them."
                )

    def _compute_cost(self, job: Job, rung: Rung) -> float:
        """Return the objective of `job` at `rung`, negated if it is maximized.

        Return infinity if the job failed or has no finite objective.
        """
        value = None if read_job_status(job.run_dir).state == "failed" else self._find_objective(job, rung)
        if value is None or not math.isfinite(value):
            return math.inf
        return -value if job.config.trainer.direction == "max" else value

    def _find_objective(self, job: Job, rung: Rung, min_epoch: int = 0) -> float | None:
        """Return the last objective of `job` logged between `min_epoch` and the epoch of `rung`, or None."""
        # The module imports numpy, and every command imports this one.
        from genexp.run_dir.metrics import find_metric, read_metrics

        curves = read_metrics(job.run_dir).get("test", {})
        name = find_metric(job.config.trainer.objective.removeprefix("test/"), curves)
        if name is None:
            return None
        curve = curves[name]
        is_candidate = (curve.epochs >= min_epoch) & (curve.epochs <= rung.epoch) & (curve.values == curve.values)
        return float(curve.values[is_candidate][-1]) if is_candidate.any() else None
