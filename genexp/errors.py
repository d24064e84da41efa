"""Errors that a user can cause or fix. Each message is one line: the key, its value, the reason and a remedy."""

import functools
import traceback
from collections.abc import Callable
from pathlib import Path


class GenexpError(Exception):
    """Base class of errors that are printed as one line instead of a traceback."""


class ConfigError(GenexpError):
    """Error of a setting that is unknown, of the wrong type, out of range, or in conflict with another one."""


class PluginError(ConfigError):
    """Error in a plugin, or in how it uses this package. The message starts with the file and the line."""


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


def locate(function: Callable[..., object]) -> str:
    """Return FILE:LINE of the definition of a function or method, or its name if that is unknown."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)


def format_code_error(error: BaseException, path: Path) -> str:
    """Return FILE:LINE: TYPE: MESSAGE of an error in the code of `path`, with the innermost line of that file."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line, message = (frames[-1].lineno if frames else None), str(error)
    if isinstance(error, SyntaxError) and error.filename in (str(path), "<unknown>"):
        line, message = error.lineno, error.msg
    words = [type(error).__name__, *message.splitlines()[:1]]
    return ": ".join([str(path) if line is None else f"{path}:{line}", *words])
