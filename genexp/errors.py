"""The errors a user can cause. Each message is one line: what, its value, and what to do about it."""


class GenexpError(Exception):
    """Base of every error that ends a command in one line instead of a stack trace."""


class ConfigError(GenexpError):
    """A setting is unknown, of the wrong type, out of range, or does not fit another one."""


class RunDirInUseError(ConfigError):
    """Another process is at work in the folder."""


class DataError(GenexpError):
    """A data set is absent, damaged or unfit for what was asked."""


class CheckpointError(GenexpError):
    """A run folder or checkpoint cannot be resumed from, or could not be written."""


class RankFailedError(GenexpError):
    """One of several processes of a run is gone."""


class DivergenceError(GenexpError):
    """A loss became NaN or infinite."""
