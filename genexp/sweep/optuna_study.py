"""A search by Optuna that lives in a file: killed and gone on with, it proposes what it would have proposed."""

from __future__ import annotations

import fcntl
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from genexp.errors import ConfigError, RunDirInUseError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

SAMPLERS = {"tpe": "TPESampler", "gp": "GPSampler", "random": "RandomSampler"}
NAME = "genexp"


class Search:
    """An Optuna study in a file.

    What it proposes as trial n is a function of its sampler's seed, of n, and of the trials that are known.
    """

    def __init__(
        self,
        path: Path,
        space: Mapping[str, BaseDistribution],
        sampler: Mapping[str, Any],
        facts: Mapping[str, str],
    ) -> None:
        """Open the study in `path`, or begin it. `facts` are words about what is searched, its direction too.

        Raises ConfigError where the study in the file is another one.
        """
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._sampler = optuna, dict(space), dict(sampler)
        self._direction: Literal["maximize", "minimize"] = (
            "maximize" if facts["direction"] == "max" else "minimize"
        )
        _cut_torn_line(path)
        backend = JournalFileBackend(str(path), lock_obj=_Claimed())  # type: ignore[arg-type]
        storage = optuna.storages.JournalStorage(backend)
        self._study = optuna.create_study(
            study_name=NAME, storage=storage, direction=self._direction, load_if_exists=True
        )
        for name, value in facts.items():
            known = self._study.user_attrs.get(name, value)
            if known != value:
                raise ConfigError(f"{path} holds another search: its {name} was {known}, not {value}")
            self._study.set_user_attr(name, value)
        self._draw(0)  # a sampler that cannot be is refused before any job begins

    @property
    def trials(self) -> list[FrozenTrial]:
        """Return all trials so far."""
        return self._study.get_trials(deepcopy=False)

    def batch(self, size: int, most: int) -> list[FrozenTrial]:
        """Return the trials to run next, `size` at a time and `most` in all; nothing when the search is over.

        Those of a batch that was cut short come again. Batches begin at multiples of `size`, so that each
        knows the outcomes of all before it, and of no other.
        """
        running = self._optuna.trial.TrialState.RUNNING
        open_numbers = [trial.number for trial in self.trials if trial.state == running]
        first = min(open_numbers, default=len(self.trials))
        end = min(most, size * (first // size + 1))
        while len(self.trials) < end:
            self._propose(len(self.trials))
        return [trial for trial in self.trials[first:] if trial.state == running]

    def tell(self, number: int, value: float | None) -> None:
        """Note what came of a trial; None where it failed."""
        states = self._optuna.trial.TrialState
        if value is None or not math.isfinite(value):
            self._study.tell(number, state=states.FAIL)
        else:
            self._study.tell(number, value)

    def _propose(self, number: int) -> None:
        # Drawn in memory and written down whole: a search that is killed knows a trial or does not.
        copy = self._optuna.create_study(direction=self._direction, sampler=self._draw(number))
        copy.add_trials(self.trials)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of parts of Optuna that may yet change
            drawn = copy.ask(self._space)
        trial = self._optuna.trial.create_trial(
            state=self._optuna.trial.TrialState.RUNNING, params=drawn.params, distributions=self._space
        )
        self._study.add_trial(trial)

    def _draw(self, number: int) -> BaseSampler:
        """Return the sampler that draws one trial. Raises ConfigError."""
        import numpy as np

        options = {**self._sampler}
        name, seed = options.pop("name"), options.pop("seed")
        if name not in SAMPLERS:
            raise ConfigError(f"hydra.sweeper.sampler.name={name}: choose one of {', '.join(SAMPLERS)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                own_seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
                return getattr(self._optuna.samplers, SAMPLERS[name])(seed=own_seed, **options)
            except (TypeError, ValueError, ImportError) as error:
                raise ConfigError(f"hydra.sweeper.sampler={name}: {error}") from None


def distribution(override: Override) -> BaseDistribution:
    """Return the distribution that a swept value of the command line means."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        whole = "int" in value.tags or (isinstance(value.start, int) and isinstance(value.end, int))
        assert value.start is not None
        assert value.end is not None
        if whole:
            return IntDistribution(int(value.start), int(value.end), log=log)
        return FloatDistribution(value.start, value.end, log=log)
    if isinstance(value, RangeSweep) and not value.shuffle:
        values = list(value.range())
        if values and isinstance(values[0], int):
            return IntDistribution(min(values), max(values), step=1 if log else abs(int(value.step)), log=log)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


@contextmanager
def claimed_file(path: Path) -> Iterator[None]:
    """Keep other searches from a file while the block runs. Raises FolderInUseError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunDirInUseError(f"{path} is in use by another search; wait for it, or stop it") from None
        yield


class _Claimed:
    """Optuna's lock of a file that is claimed already: its own would outlive a search that is killed."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        """Nothing is held."""


def _cut_torn_line(path: Path) -> None:
    """Cut off what a search that was killed had written half."""
    if path.exists():
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with path.open("r+b") as file:
                file.truncate(len(whole))
