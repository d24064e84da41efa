"""Published weight files: download into the cache of torch.hub, and loading without executing code."""

from __future__ import annotations

import pickle
import socket
import warnings
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genexp.errors import ConfigError

DOWNLOAD_TIMEOUT_SECONDS = 30  # without receiving data


def download_weights(url: str, setting: str, remedy: str) -> Path:
    """Return the path of the file at `url` in the cache of torch.hub. The file is downloaded if it is absent.

    Its name must end in the first digits of its SHA-256, which are verified at the download. An error message
    begins with `setting`, the option or key, and ends with the sentence `remedy`. Raises ConfigError if the
    download fails.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if path.is_file():
        return path
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        # The download has a temporary name until its checksum is verified: a partial file is never used.
        torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError, pickle.UnpicklingError) as error:  # wrong checksum: RuntimeError
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{setting}: {path} does not exist, and its download failed ({reason}). {remedy}"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def load_weight_file(path: Path, setting: str, remedy: str) -> Mapping[str, Tensor]:
    """Return name → tensor (of any shape) in a weight file. Raises ConfigError, also for a file with code.

    An error message begins with `setting`, the option or key, and ends with the sentence `remedy`.
    """
    if not path.is_file():
        raise ConfigError(f"{setting}: not a file. {remedy}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about some files before it rejects them
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{setting}: not loaded: not a weight file, or with other objects than tensors. {remedy}"
        ) from None
    except Exception as error:  # a damaged file can make torch and zipfile raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{setting}: not readable ({reason}). {remedy}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"{setting}: contains no named weights. {remedy}")
    return content
