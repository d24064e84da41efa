"""The convolutions of VGG19 (Simonyan & Zisserman 2015), cut off behind the last layer that is looked at."""

from __future__ import annotations

import pickle
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from genexp.errors import ConfigError

CONV_BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # channels and number of convolutions
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's images
POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "max": lambda: nn.MaxPool2d(2),
    "average": lambda: nn.AvgPool2d(2),  # lets gradients reach each pixel (Gatys et al. 2016)
}
WEIGHTS_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"  # torchvision's IMAGENET1K_V1
DOWNLOAD_TIMEOUT_SECONDS = 30  # seconds without a byte from the network
WEIGHTS_REMEDY = "set model.weights=FILE to a copy of torchvision's vgg19 weights, or model.weights=random"


class FrozenConv2d(nn.Conv2d):
    """A convolution whose filters have no gradient. It forgets its input, which torch's keeps for theirs."""

    def forward(self, images: Tensor) -> Tensor:
        """Return (batch, outputs, height, width) of images (batch, inputs, height, width)."""
        return torch.as_tensor(_FrozenConv2dFunction.apply(images, self.weight, self.bias, self._get_conv_args()))

    def _get_conv_args(self) -> tuple[Any, ...]:
        assert self.padding_mode == "zeros", "images are padded with zeros only"
        return self.stride, self.padding, self.dilation, self.groups


class _FrozenConv2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor | None, conv_args: tuple[Any, ...]) -> Tensor:
        return F.conv2d(images, weight, bias, *conv_args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        images, weight, _, ctx.how = inputs
        ctx.size = images.shape
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors  # in autocast the gradient may be of another type
        input_gradient = conv2d_input(ctx.size, weight.to(gradient.dtype), gradient, *ctx.how)
        return input_gradient, None, None, None


def _iterate_layers() -> Iterator[tuple[str, int]]:
    number = 0
    for channels, num_convs in CONV_BLOCKS:
        for _ in range(num_convs):
            number += 1
            yield f"conv_{number}", channels
            yield f"relu_{number}", channels
        yield f"pool_{number}", channels


LAYER_CHANNELS = dict(
    _iterate_layers()
)  # name → channels, in order: the nth is features.n of torchvision's network


class VGG19(nn.Module):
    """Frozen features of images. A convolution is looked at before its ReLU."""

    mean: Tensor
    std: Tensor

    def __init__(self, layers: Sequence[str], *, pooling: str = "max") -> None:
        """`layers` are the names of those looked at, for example conv_4, relu_4 or pool_4."""
        super().__init__()
        names = list(LAYER_CHANNELS)
        self.output_layers = frozenset(layers)
        channels = 3
        self.layers = nn.ModuleDict()
        for name in names[: 1 + max(names.index(layer) for layer in layers)]:
            kind = name.partition("_")[0]
            if kind == "conv":
                self.layers[name] = FrozenConv2d(channels, LAYER_CHANNELS[name], 3, padding=1)
                channels = LAYER_CHANNELS[name]
            elif kind == "relu":
                # One in place would spoil the convolution's output where that is looked at, and so is there
                # anyway: then this is a ReLU that keeps its input for the gradient, not its output.
                is_output = f"conv_{name.partition('_')[2]}" in self.output_layers
                self.layers[name] = nn.Threshold(0, 0) if is_output else nn.ReLU(inplace=True)
            else:
                self.layers[name] = POOLINGS[pooling]()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield layers and their features (batch, channels, height, width) of RGB images in [0, 1].

        What is computed of some features before the next are asked for has its gradient when theirs is due, and
        not ahead of all: gradients go the way back.
        """
        features = (images - self.mean) / self.std
        for name, layer in self.layers.items():
            features = layer(features)
            if name in self.output_layers:
                yield name, features

    def compute_feature_shapes(self, size: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
        """Return layer → (channels, height, width) of the features of images of `size`. Raises ConfigError."""
        height, width = size
        shapes = {}
        for name in self.layers:
            if name.startswith("pool"):
                height, width = height // 2, width // 2
            if min(height, width) < 1:
                raise ConfigError(
                    f"an image of {size[0]}×{size[1]} pixels vanishes at layer {name}; raise dataset.size "
                    f"(or the smallest of model.scales), or look at earlier layers only"
                )
            shapes[name] = (LAYER_CHANNELS[name], height, width)
        return {name: shapes[name] for name in shapes if name in self.output_layers}

    def load(self, weights: Mapping[str, Tensor], *, origin: str) -> None:
        """Take over the convolutions of torchvision's vgg19. Raises ConfigError naming `origin`."""
        indices = {name: index for index, name in enumerate(LAYER_CHANNELS)}
        for name, layer in self.layers.items():
            for parameter_name, parameter in layer.named_parameters():
                key = f"features.{indices[name]}.{parameter_name}"
                value = weights.get(key)
                if not isinstance(value, Tensor):
                    raise ConfigError(f"model.weights={origin} lacks {key}; {WEIGHTS_REMEDY}")
                if value.shape != parameter.shape:
                    sizes = f"{list(value.shape)}, not {list(parameter.shape)}"
                    raise ConfigError(f"model.weights={origin}: {key} is {sizes}; {WEIGHTS_REMEDY}")
                if not torch.isfinite(value).all():
                    raise ConfigError(f"model.weights={origin}: {key} is not finite; {WEIGHTS_REMEDY}")
                parameter.copy_(value)

    @torch.no_grad()
    def init_random_weights(self, images: Sequence[Tensor]) -> None:
        """Draw orthogonal filters and let each have responses of mean 0 and variance 1 to `images`.

        The filters suit any images; the scale and the bias from data (Salimans & Kingma 2016, section 3) keep
        features from vanishing or blowing up, and each ReLU open for about half of the places.
        """
        feature_maps = [(image - self.mean) / self.std for image in images]
        for layer in self.layers.values():
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                layer.weight.copy_(nn.init.orthogonal_(torch.empty(layer.weight.shape)))
                layer.bias.zero_()
                responses = torch.cat([layer(features).flatten(2) for features in feature_maps], dim=2)
                std, mean = torch.std_mean(responses, dim=(0, 2))
                scale = 1 / std.clamp_min(1e-6)
                layer.weight.mul_(scale.view(-1, 1, 1, 1))
                layer.bias.copy_(-mean * scale)
            feature_maps = [layer(features) for features in feature_maps]


def load_weights(name: str) -> Mapping[str, Tensor]:
    """Return the weights called "imagenet", or those in the file of that name. Raises ConfigError."""
    return load_imagenet_weights() if name == "imagenet" else load_weight_file(Path(name).expanduser())


def load_imagenet_weights() -> Mapping[str, Tensor]:
    """Return the weights in torchvision's cache, after downloading them there if need be. Raises ConfigError."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(WEIGHTS_URL).name
    if path.is_file():
        return load_weight_file(path)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        # It arrives under another name and its checksum is compared: no half of it is ever taken for the whole.
        torch.hub.load_state_dict_from_url(WEIGHTS_URL, map_location="cpu", check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError) as error:  # a wrong checksum is a RuntimeError
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"model.weights=imagenet: {path} is absent and its download failed ({reason}); {WEIGHTS_REMEDY}"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
    return load_weight_file(path)


def load_weight_file(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors in a weight file, by name, without executing what it may hold. Raises ConfigError."""
    if not path.is_file():
        raise ConfigError(f"model.weights={path} is no file; {WEIGHTS_REMEDY}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's doubts about a file that it then refuses
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"model.weights={path} is no weight file, or holds more than tensors, possibly code: not loaded; "
            f"{WEIGHTS_REMEDY}"
        ) from None
    except Exception as error:  # a damaged file can make torch and zipfile raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"model.weights={path} cannot be read ({reason}); {WEIGHTS_REMEDY}") from None
    if not isinstance(content, Mapping):
        raise ConfigError(f"model.weights={path} holds no weights by name; {WEIGHTS_REMEDY}")
    return content
