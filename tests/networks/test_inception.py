"""Inception network of the FID: images, weight files and error messages."""

from __future__ import annotations

import importlib.util
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genexp.errors import ConfigError
from genexp.networks.inception import (
    BATCH_SIZE,
    WEIGHTS_URL,
    Inception,
    load_inception,
    prepare_torch_fidelity_import,
)


class RecordingExtractor(nn.Module):
    """Feature extractor that records its images."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Tensor] = []

    def forward(self, images: Tensor) -> tuple[Tensor]:
        self.batches.append(images)
        return (images.float().mean((2, 3)),)


def test_images_are_rgb_pixels_in_small_batches() -> None:
    extractor = RecordingExtractor()
    images = torch.linspace(-0.1, 1.1, 4 * (BATCH_SIZE + 1)).view(-1, 1, 2, 2)
    features = Inception(extractor, "0" * 8).extract_features(images)
    assert [tuple(batch.shape) for batch in extractor.batches] == [(BATCH_SIZE, 3, 2, 2), (1, 3, 2, 2)]
    pixels = torch.cat(extractor.batches)
    assert pixels.dtype == torch.uint8
    assert (int(pixels.min()), int(pixels.max())) == (0, 255)
    assert all(torch.equal(pixels[:, channel], pixels[:, 0]) for channel in (1, 2))
    assert features.shape == (BATCH_SIZE + 1, 3)
    color = torch.rand(2, 3, 4, 4)
    Inception(extractor, "0" * 8).extract_features(color)
    torch.testing.assert_close(extractor.batches[-1].float() / 255, color, atol=0.5 / 255 + 1e-6, rtol=0)


def test_images_with_other_channels_are_rejected() -> None:
    with pytest.raises(ConfigError, match="takes gray and RGB images, not 2 channels"):
        Inception(RecordingExtractor(), "0" * 8).extract_features(torch.zeros(1, 2, 4, 4))


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as excinfo:
        load_inception()
    assert str(excinfo.value) == "--inception: requires torch-fidelity. Run `pip install 'genexp[inception]'`."


def _require_torch_fidelity() -> None:
    """Skip the test if the package is absent. It is not imported: `prepare_torch_fidelity_import` comes first."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("needs the extra inception")


def test_failed_download_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _require_torch_fidelity()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(ConfigError) as excinfo:
        load_inception()
    message = str(excinfo.value)
    assert message.startswith("--inception: ")
    assert "no network" in message
    assert message.endswith(f"Download {WEIGHTS_URL}, and pass it with --inception-weights FILE.")
    assert "\n" not in message


class Trap:
    """Object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_unusable_weight_files_are_one_line_and_execute_no_code(tmp_path: Path) -> None:
    _require_torch_fidelity()
    contents: dict[str, tuple[Any, str]] = {
        "code": ({"fc.bias": Trap(tmp_path / "executed")}, "not loaded: not a weight file, or with other objects"),
        "number": (7, "contains no named weights"),
        "names": ({"features.0.weight": torch.zeros(3)}, "not the weights of this network (Missing key(s)"),
        "types": ({1: torch.zeros(3)}, "not the weights of this network ("),
    }
    for name, (content, expected) in contents.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        with pytest.raises(ConfigError) as excinfo:
            load_inception(path)
        message = str(excinfo.value)
        assert message.startswith(f"--inception-weights {path}: {expected}")
        assert message.endswith("and pass it with --inception-weights FILE.")
        assert "\n" not in message
    assert not (tmp_path / "executed").exists()
    with pytest.raises(ConfigError, match="absent: not a file"):
        load_inception(tmp_path / "absent")


def test_weights_url_is_that_of_torch_fidelity() -> None:
    _require_torch_fidelity()
    prepare_torch_fidelity_import()
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    assert URL_INCEPTION_V3 == WEIGHTS_URL
