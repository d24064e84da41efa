"""Optuna sweeper `hydra/sweeper=optuna`: search for the best `trainer.objective` with trials as jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.utils import JobStatus
from omegaconf import DictConfig

from genexp.config import to_plain_config
from genexp.errors import ConfigError
from genexp.run_dir.paths import STUDY_FILE
from genexp.sweep.config import hash_config, require_positive_int_or_none
from genexp.sweep.launcher import parse_sweep_overrides, require_extra, require_sweep_launcher
from genexp.sweep.optuna_study import OptunaStudy, build_distribution, lock_study_file
from genexp.sweep.summary import report_on_exit

# Accepted values of `hydra.sweeper.direction` → value of `trainer.direction`.
DIRECTIONS = {"minimize": "min", "maximize": "max", "min": "min", "max": "max"}


class OptunaSweeper(BasicSweeper):
    """Sweeper that runs Optuna trials as batches of jobs until `n_trials` trials have run."""

    def __init__(
        self,
        n_trials: int,
        n_jobs: int | None,
        direction: str | None,
        storage: str | None,
        sampler: DictConfig,
        params: dict[str, str] | None,
    ) -> None:
        super().__init__(max_batch_size=None, params=params)
        self.n_trials, self.n_jobs, self.direction = n_trials, n_jobs, direction
        self.storage, self.sampler = storage, sampler

    def sweep(self, arguments: list[str]) -> None:
        """Run the search. Raises GenexpError if it is invalid, its study file is in use, or jobs failed."""
        require_extra("hydra/sweeper=optuna", "optuna")
        require_positive_int_or_none("hydra.sweeper.n_trials", self.n_trials)
        require_positive_int_or_none("hydra.sweeper.n_jobs", self.n_jobs)
        launcher = require_sweep_launcher(self)
        if launcher.sweep_config.halving["factor"] is not None:
            raise ConfigError("sweep.halving.factor: cannot be combined with hydra/sweeper=optuna. Remove it.")
        overrides = parse_sweep_overrides(self, arguments)
        sweep_overrides = [override for override in overrides if override.is_sweep_override()]
        fixed_overrides = [
            f"{override.get_key_element()}={override.get_value_element_as_str()}"
            for override in overrides
            if override not in sweep_overrides
        ]
        search_space = {override.get_key_element(): build_distribution(override) for override in sweep_overrides}
        user_attrs = self._build_user_attrs(fixed_overrides, sweep_overrides, search_space)
        study_path = Path(self.storage).absolute() if self.storage else launcher.sweep_dir / STUDY_FILE
        launcher.progress.expected_work = self.n_trials
        with lock_study_file(study_path):
            study = OptunaStudy(study_path, search_space, dict(self.sampler), user_attrs)
            with report_on_exit(launcher.sweep_dir, launcher.started_at):
                while batch := study.ask_batch(self.n_jobs or launcher.max_parallel_jobs, self.n_trials):
                    job_overrides = [
                        [*fixed_overrides, *(f"{key}={value}" for key, value in trial.params.items())]
                        for trial in batch
                    ]
                    for trial, job_return in zip(
                        batch, launcher.launch(job_overrides, batch[0].number), strict=True
                    ):
                        if job_return.status == JobStatus.FAILED:
                            study.tell(trial.number, None)
                        elif job_return.return_value is not None:
                            study.tell(trial.number, job_return.return_value)
                    if not launcher.can_start_job():
                        break

    def _build_user_attrs(
        self, fixed_overrides: list[str], sweep_overrides: list[Override], search_space: dict[str, Any]
    ) -> dict[str, str]:
        """Return the attributes that identify this search in its study file.

        Raises GenexpError if nothing is searched, a configuration is invalid, or directions contradict each other.
        """
        from genexp.runs.config import bind_experiment  # imports torch

        assert self.config is not None
        assert self.hydra_context is not None
        if not search_space:
            raise ConfigError(
                "hydra/sweeper=optuna: no search space. Add a range, such as "
                "optimizer.lr='tag(log, interval(1e-5, 1e-2))'."
            )
        compose = self.hydra_context.config_loader.load_sweep_config
        bind_experiment(
            to_plain_config(compose(self.config, [*fixed_overrides, *map(format_first_value, sweep_overrides)]))
        )
        config = compose(self.config, fixed_overrides)
        trainer = config.trainer
        if self.direction is not None and DIRECTIONS.get(self.direction) != trainer.direction:
            raise ConfigError(
                f"hydra.sweeper.direction={self.direction}: must agree with "
                f"trainer.direction={trainer.direction}. Remove it."
            )
        input_lines = sorted("".join(str(override.input_line).split()) for override in sweep_overrides)
        return {
            "objective": trainer.objective,
            "direction": trainer.direction,
            "space": " ".join(input_lines),
            "configuration": hash_config(config),
        }


def format_first_value(override: Override) -> str:
    """Return `key=value` with the first value of a sweep override, or the start of its interval."""
    value = override.value()
    first = value.start if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={first}"


# Registered here, not in conf/: Hydra would validate a file there against the schema of its plugin of that name.
STORE = ConfigStore.instance()
STORE.store(
    group="hydra/sweeper",
    name="optuna",
    node={
        "defaults": [{"sampler": "tpe"}],
        "_target_": f"{__name__}.OptunaSweeper",
        "n_trials": 20,  # total number of trials; a larger number continues a search
        "n_jobs": None,  # trials in a batch; null: the number of jobs the launcher runs in parallel
        "direction": None,  # must equal trainer.direction if it is set
        "storage": None,  # path of the study file; null: optuna.log in the sweep directory
        "params": None,
    },
    provider="genexp",
)
# Keys other than `name` and `seed` are arguments of the Optuna sampler class.
DEFAULT_SAMPLER_OPTIONS = {
    "tpe": {"n_startup_trials": 10, "constant_liar": True},  # constant_liar avoids similar trials in a batch
    "gp": {"n_startup_trials": 10},
    "random": {},
}
for name, options in DEFAULT_SAMPLER_OPTIONS.items():
    STORE.store(
        group="hydra/sweeper/sampler", name=name, node={"name": name, "seed": 0, **options}, provider="genexp"
    )
