"""`hydra/sweeper=optuna`: jobs chosen by what came of those before, for the best `trainer.objective`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.utils import JobStatus
from omegaconf import DictConfig

from genexp.errors import ConfigError
from genexp.sweep.config import require_positive
from genexp.sweep.hydra_overrides import launcher_of, overrides_of
from genexp.sweep.launcher import require_extra
from genexp.sweep.manifest import digest, plain
from genexp.sweep.optuna_study import Search, claimed_file, distribution
from genexp.sweep.summary import concluded

DIRECTIONS = {"minimize": "min", "maximize": "max", "min": "min", "max": "max"}
FILE = "optuna.log"


class OptunaSweeper(BasicSweeper):
    """Runs trials in batches, each a batch of jobs, until there are `n_trials`."""

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
        """Search. Raises GenexpError."""
        require_extra("hydra/sweeper=optuna", "optuna")
        require_positive("hydra.sweeper.n_trials", self.n_trials)
        require_positive("hydra.sweeper.n_jobs", self.n_jobs)
        launcher = launcher_of(self)
        if launcher.settings.halving["factor"] is not None:
            raise ConfigError(
                "sweep.halving judges all jobs at once, a search chooses one after the other; leave it out"
            )
        overrides = overrides_of(self, arguments)
        swept = [override for override in overrides if override.is_sweep_override()]
        fixed = [
            f"{one.get_key_element()}={one.get_value_element_as_str()}" for one in overrides if one not in swept
        ]
        space = {override.get_key_element(): distribution(override) for override in swept}
        facts = self._facts(fixed, swept, space)
        path = Path(self.storage).absolute() if self.storage else launcher.folder / FILE
        launcher.overview.expected = self.n_trials
        with claimed_file(path):
            search = Search(path, space, dict(self.sampler), facts)
            with concluded(launcher.folder, launcher.begun):
                while batch := search.batch(self.n_jobs or launcher.at_once, self.n_trials):
                    words = [
                        [*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in batch
                    ]
                    for trial, job in zip(batch, launcher.launch(words, batch[0].number), strict=True):
                        if job.status == JobStatus.FAILED:
                            search.tell(trial.number, None)
                        elif job.return_value is not None:
                            search.tell(trial.number, job.return_value)
                    if not launcher.may_begin():
                        break

    def _facts(self, fixed: list[str], swept: list[Override], space: dict[str, Any]) -> dict[str, str]:
        """Return in words what is searched. Raises GenexpError where that cannot be, or contradicts itself."""
        from genexp.runs.build import check_config  # with torch

        assert self.config is not None
        assert self.hydra_context is not None
        if not space:
            raise ConfigError(
                "hydra/sweeper=optuna has nothing to search; give a range, such as "
                "optimizer.lr='tag(log, interval(1e-5, 1e-2))'"
            )
        compose = self.hydra_context.config_loader.load_sweep_config
        check_config(plain(compose(self.config, [*fixed, *map(one_of, swept)])))
        config = compose(self.config, fixed)
        trainer = config.trainer
        if self.direction is not None and DIRECTIONS.get(self.direction) != trainer.direction:
            raise ConfigError(
                f"hydra.sweeper.direction={self.direction} contradicts trainer.direction={trainer.direction} of "
                f"trainer.objective={trainer.objective}; leave it out"
            )
        words = sorted("".join(str(override.input_line).split()) for override in swept)
        return {
            "objective": trainer.objective,
            "direction": trainer.direction,
            "space": " ".join(words),
            "configuration": digest(config),
        }


def one_of(override: Override) -> str:
    """Return a swept value's override with the first of its values."""
    value = override.value()
    first = value.start if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={first}"


# Not files in conf/, which Hydra would hold against a sweeper's schema.
STORE = ConfigStore.instance()
STORE.store(
    group="hydra/sweeper",
    name="optuna",
    node={
        "defaults": [{"sampler": "tpe"}],
        "_target_": f"{__name__}.OptunaSweeper",
        "n_trials": 20,  # of the whole search: raise it to go on
        "n_jobs": None,  # in a batch; null: as many as the launcher runs at a time
        "direction": None,  # trainer.direction says it; here it can only be said again
        "storage": None,  # the study's file; null: optuna.log in the sweep's folder
        "params": None,
    },
    provider="genexp",
)
# Further keys are handed to the sampler's class in Optuna.
SAMPLERS = {
    "tpe": {"n_startup_trials": 10, "constant_liar": True},  # the trials of a batch keep apart
    "gp": {"n_startup_trials": 10},
    "random": {},
}
for name, options in SAMPLERS.items():
    STORE.store(
        group="hydra/sweeper/sampler", name=name, node={"name": name, "seed": 0, **options}, provider="genexp"
    )
