"""Optuna study in a journal file. A search that was killed and resumed proposes the same trials."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from genexp.errors import ConfigError
from genexp.run_dir.files import lock_file, read_file, truncate_file

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

# Value of `hydra.sweeper.sampler.name` → class in `optuna.samplers`.
SAMPLER_CLASSES = {"tpe": "TPESampler", "gp": "GPSampler", "random": "RandomSampler"}
STUDY_NAME = "genexp"


class OptunaStudy:
    """Optuna study in a journal file.

    The proposal for trial n is a function of the sampler's options, its seed, n, and the trials in the file.
    """

    def __init__(
        self,
        path: Path,
        search_space: Mapping[str, BaseDistribution],
        sampler_options: Mapping[str, Any],
        user_attrs: Mapping[str, str],
    ) -> None:
        """Open the study in the file `path`, or create it.

        `user_attrs` describe the search and are stored in the study. Their key `direction` is min or max.
        `sampler_options` contain `name` and `seed`; the others are arguments of the sampler class.

        Raises ConfigError if the stored attributes differ from `user_attrs`, or if the sampler cannot be built.
        """
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._search_space, self._sampler_options = optuna, dict(search_space), dict(sampler_options)
        self._direction: Literal["maximize", "minimize"] = (
            "maximize" if user_attrs["direction"] == "max" else "minimize"
        )
        _truncate_partial_line(path)
        backend = JournalFileBackend(str(path), lock_obj=_NoOpLock())
        storage = optuna.storages.JournalStorage(backend)
        self._study = optuna.create_study(
            study_name=STUDY_NAME, storage=storage, direction=self._direction, load_if_exists=True
        )
        for name, value in user_attrs.items():
            stored = self._study.user_attrs.get(name, value)
            if stored != value:
                raise ConfigError(
                    f"{path}: contains another search ({name} was {stored}, now {value}). "
                    f"Use another hydra.sweeper.storage."
                )
            self._study.set_user_attr(name, value)
        self._build_sampler(0)  # report invalid options before any job starts

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials in the file, by number."""
        return self._study.get_trials(deepcopy=False)

    def ask_batch(self, batch_size: int, n_trials: int) -> list[FrozenTrial]:
        """Return the unfinished trials of the next batch, or an empty list once `n_trials` trials have ended.

        An interrupted batch is returned again. Batches start at multiples of `batch_size`. The trials of a batch
        therefore depend on the results of all previous batches only.
        """
        running = self._optuna.trial.TrialState.RUNNING
        running_numbers = [trial.number for trial in self.trials if trial.state == running]
        first = min(running_numbers, default=len(self.trials))
        end = min(n_trials, batch_size * (first // batch_size + 1))
        while len(self.trials) < end:
            self._add_trial(len(self.trials))
        return [trial for trial in self.trials[first:] if trial.state == running]

    def tell(self, trial_number: int, value: float | None) -> None:
        """Store the result of trial `trial_number`. It counts as failed if `value` is None or not finite."""
        states = self._optuna.trial.TrialState
        if value is None or not math.isfinite(value):
            self._study.tell(trial_number, state=states.FAIL)
        else:
            self._study.tell(trial_number, value)

    def _add_trial(self, trial_number: int) -> None:
        # A trial is sampled in memory and written as one record, so that the file never contains a part of it.
        in_memory_study = self._optuna.create_study(
            direction=self._direction, sampler=self._build_sampler(trial_number)
        )
        in_memory_study.add_trials(self.trials)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns about its experimental features
            proposal = in_memory_study.ask(self._search_space)
        trial = self._optuna.trial.create_trial(
            state=self._optuna.trial.TrialState.RUNNING, params=proposal.params, distributions=self._search_space
        )
        self._study.add_trial(trial)

    def _build_sampler(self, trial_number: int) -> BaseSampler:
        """Return the sampler for trial `trial_number`. Raises ConfigError if its name or options are invalid."""
        import numpy as np

        options = {**self._sampler_options}
        name, seed = options.pop("name"), options.pop("seed")
        if name not in SAMPLER_CLASSES:
            raise ConfigError(f"hydra.sweeper.sampler.name={name}: must be one of {', '.join(SAMPLER_CLASSES)}.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                trial_seed = int(np.random.SeedSequence((seed, trial_number)).generate_state(1)[0])
                return getattr(self._optuna.samplers, SAMPLER_CLASSES[name])(seed=trial_seed, **options)
            except (TypeError, ValueError, ImportError) as error:
                raise ConfigError(f"hydra.sweeper.sampler={name}: {error}. Check its options.") from None


def build_distribution(override: Override) -> BaseDistribution:
    """Return the Optuna distribution for a sweep override, such as `interval(1e-5, 1e-2)` or `choice(a, b)`.

    The tag `log` selects a logarithmic scale. The tag `int`, or two integer bounds, selects integers.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    is_log_scale = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        is_int = "int" in value.tags or (isinstance(value.start, int) and isinstance(value.end, int))
        assert value.start is not None
        assert value.end is not None
        if is_int:
            return IntDistribution(int(value.start), int(value.end), log=is_log_scale)
        return FloatDistribution(value.start, value.end, log=is_log_scale)
    if isinstance(value, RangeSweep) and not value.shuffle:
        values = list(value.range())
        if values and isinstance(values[0], int):
            return IntDistribution(
                min(values), max(values), step=1 if is_log_scale else abs(int(value.step)), log=is_log_scale
            )
    return CategoricalDistribution(list(override.sweep_string_iterator()))


@contextmanager
def lock_study_file(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the study file during the block. The system releases it if the process is killed.

    Raises RunDirInUseError if another search holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file of its own: on Windows, the holder of a locked file could not write it either.
    with lock_file(path.with_name(f"{path.name}.lock"), in_use=f"{path}: in use by another search"):
        yield


class _NoOpLock:
    """Lock without effect, for a journal file that `lock_study_file` has locked.

    Optuna's own lock would remain after a search is killed.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        """Do nothing."""


def _truncate_partial_line(path: Path) -> None:
    """Remove an incomplete last line that a killed search left in the file."""
    if path.exists():
        content = read_file(path)
        complete_lines = content[: content.rfind(b"\n") + 1]
        if complete_lines != content:
            truncate_file(path, len(complete_lines))
