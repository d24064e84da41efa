"""Errors that a user can cause or fix. Each message is one line: the key, its value, the reason and a remedy."""


class GenexpError(Exception):
    """Base class of errors that are printed as one line instead of a traceback."""


class ConfigError(GenexpError):
    """Error of a setting that is unknown, of the wrong type, out of range, or in conflict with another one."""


class RunDirInUseError(ConfigError):
    """Error of a run directory that another process has locked."""


class DataError(GenexpError):
    """Error of a data set that is missing, damaged or unsuitable for the request."""


class CheckpointError(GenexpError):
    """Error of a run directory or checkpoint that cannot be used or written."""


class RankFailedError(GenexpError):
    """Error of a run with several processes, one of which failed or exited."""


class DivergenceError(GenexpError):
    """Error of a training run whose loss or weights became NaN or infinite."""
