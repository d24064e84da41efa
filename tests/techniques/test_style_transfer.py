"""Neural style transfer: its network, its two photographs, its image."""

from __future__ import annotations

import shutil
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from genexp.data import load_dataset
from genexp.data.dataset import Dataset
from genexp.errors import ConfigError, DataError
from genexp.images.color import COLOR_MODES, luminance
from genexp.images.transforms import resize
from genexp.images.vision import torchvision
from genexp.networks.vgg import (
    LAYER_CHANNELS,
    VGG19,
    WEIGHTS_URL,
    FrozenConv2d,
    load_imagenet_weights,
    load_weight_file,
)
from genexp.run_dir.checkpoint import list_checkpoints
from genexp.technique import Clock
from genexp.techniques.style_transfer import StyleTransfer, StyleTransferConfig, clamp_keep_gradient, gram_matrix
from genexp.training.learner import Learner, StepSettings
from genexp.training.optimizers import plan_optimizers
from tests.support.assertions import assert_same_run
from tests.support.command import load_status, read_metrics_log, run_dir_override, run_genexp

SMALL_RUN = ("model=style_transfer", "dataset.size=32", "device=cpu", "device.threads=1")
LBFGS = {"name": "lbfgs", "lr": 1.0, "max_iter": 1, "history_size": 10, "line_search_fn": None}
ADAM = {"name": "adam", "lr": 0.05, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}


def load_photographs(size: int = 48, **values: Any) -> Dataset:
    defaults = {"name": "photographs", "limit": None, "resident_gb": 4.0, "content": None, "style": None}
    return load_dataset({**defaults, "size": size, **values})


def make_learner(optimizer: dict[str, Any], **changes: Any) -> tuple[Learner, list[dict[str, Tensor]]]:
    """Return a learner of the embedded photographs with a random network, begun, and its data."""
    values: dict[str, Any] = {
        "weights": "random",
        "pooling": "max",
        "content_layers": ["conv_4"],
        "style_layers": ["conv_1", "conv_2", "conv_3"],
        "content_weight": 1.0,
        "style_weight": 1e5,
        "variation_weight": 0.0,
        "scales": [1.0],
        "preserve_color": "none",
        **changes,
    }
    dataset = load_photographs()
    torch.manual_seed(0)
    technique = StyleTransfer(StyleTransferConfig(**values), dataset.spec)
    plan = plan_optimizers({**optimizer, "schedule": "constant", "warmup_steps": 0, "decay_start": 0.0})
    data = [{name: stream / 255 for name, stream in dataset.train.streams.items() if isinstance(stream, Tensor)}]
    technique.initialize(data)
    return Learner(technique, plan, StepSettings(), torch.device("cpu")), data


def run_steps(learner: Learner, data: list[dict[str, Tensor]], steps: int) -> list[float]:
    return [float(learner.step(data[0], data, Clock(step, steps, 1))["loss"]) for step in range(1, steps + 1)]


def test_vgg_layers_match_torchvision() -> None:
    reference = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"][:7])
    network = VGG19(["conv_3", "relu_3", "pool_4", "conv_5"])
    weights = {f"features.{name}": weight for name, weight in reference.state_dict().items()}
    network.load_torchvision_weights(weights, origin="test")
    images = torch.rand(1, 3, 20, 24)
    features = (images - network.mean) / network.std
    seen = dict(network(images))
    for name, layer in zip(LAYER_CHANNELS, reference, strict=False):
        features = layer(features.clone())
        if name in seen:
            torch.testing.assert_close(seen[name], features)
            assert network.compute_feature_shapes((20, 24))[name] == tuple(features.shape[1:])
    assert list(seen) == ["conv_3", "relu_3", "pool_4", "conv_5"]


def test_vgg_gradients_match_torchvision() -> None:
    reference = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"][:7])
    network = VGG19(["conv_2", "relu_4"])
    weights = {f"features.{name}": weight for name, weight in reference.state_dict().items()}
    network.load_torchvision_weights(weights, origin="test")
    image = torch.rand(1, 3, 20, 24, requires_grad=True)
    features, expected = (image - network.mean) / network.std, torch.zeros(())
    for name, layer in zip(LAYER_CHANNELS, reference, strict=False):
        features = layer(features.clone())
        if name in network.output_layers:
            expected = expected + features.square().sum()
    found = torch.stack([features.square().sum() for _, features in network(image)]).sum()
    (one,), (other,) = torch.autograd.grad(expected, image), torch.autograd.grad(found, image)
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_only_convolution_outputs_are_saved_for_the_backward_pass() -> None:
    """Neither a ReLU's result, nor what goes into a frozen convolution."""
    network = VGG19(["conv_1", "conv_2"])
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
    layer = FrozenConv2d(3, 6, 3, stride=2, padding=1, groups=3).requires_grad_(False)
    image = torch.rand(1, 3, 6, 7, requires_grad=True)
    (exact,) = torch.autograd.grad(layer(image).square().sum(), image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(image)
    (rounded,) = torch.autograd.grad(result.float().square().sum(), image)
    assert (result.dtype, rounded.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_network_ends_at_the_last_output_layer() -> None:
    network = VGG19(["conv_2", "conv_3"])
    assert list(network.layers) == ["conv_1", "relu_1", "conv_2", "relu_2", "pool_2", "conv_3"]
    assert not any(weight.requires_grad for weight in network.parameters())


def test_random_weights_give_normalized_features() -> None:
    network = VGG19(["conv_1", "conv_5", "conv_9"])
    images = torch.rand(1, 3, 64, 64)
    network.init_random_weights([images])
    for _, features in network(images):
        deviation, mean = torch.std_mean(features)
        assert abs(float(mean)) < 0.01
        assert abs(float(deviation) - 1) < 0.1


@pytest.fixture
def weight_file(tmp_path: Path) -> Path:
    """Return a file with the first convolution of a network like torchvision's."""
    file = tmp_path / "vgg.pth"
    torch.save({"features.0.weight": torch.randn(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}, file)
    return file


ONE_LAYER = ("model.content_layers=[conv_1]", "model.style_layers=[conv_1]", "trainer.max_steps=2")


def test_weights_are_loaded_from_a_file(weight_file: Path, tmp_path: Path) -> None:
    result = run_genexp(*SMALL_RUN, *ONE_LAYER, f"model.weights={weight_file}", run_dir_override(tmp_path / "run"))
    assert result.exit_code == 0, result.stderr
    assert {"content", "style"} < set(read_metrics_log(tmp_path / "run")[0])
    assert not load_status(tmp_path / "run")["warnings"]
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True)["technique"]
    assert torch.equal(best["features.layers.conv_1.weight"], torch.load(weight_file)["features.0.weight"])


def test_invalid_weight_files_fail_with_one_line(weight_file: Path, tmp_path: Path) -> None:
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
        tmp_path / "absent.pth": "is no file",
        weight_file: "lacks features.2.weight",
        shape: "features.0.weight is [3], not [64, 3, 3, 3]",
        endless_overrides: "features.0.weight is not finite",
        code: "possibly code: not loaded",
        garbage: "no weight file",
        number: "no weights by name",
    }
    for file, expected_message in cases.items():
        with pytest.raises(ConfigError) as excinfo:
            VGG19(["conv_2"]).load_torchvision_weights(load_weight_file(file), origin=str(file))
        message = str(excinfo.value)
        assert expected_message in message
        assert message.startswith(f"model.weights={file}")
        assert "model.weights=random" in message
        assert "\n" not in message


def test_cached_weights_are_used_before_downloading(
    weight_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(ConfigError, match=r"no network.*model\.weights=FILE.*model\.weights=random"):
        load_imagenet_weights()
    cached = tmp_path / "hub" / "checkpoints" / Path(WEIGHTS_URL).name
    cached.parent.mkdir(parents=True)
    weight_file.rename(cached)
    assert set(load_imagenet_weights()) == {"features.0.weight", "features.0.bias"}


def test_random_weights_are_marked_in_metrics_and_warnings(tmp_path: Path) -> None:
    result = run_genexp(*SMALL_RUN, "model.weights=random", "trainer.max_steps=2", run_dir_override(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert all("content_random" in line and "style_random" in line for line in read_metrics_log(tmp_path))
    (warning,) = load_status(tmp_path)["warnings"]
    assert warning.startswith("model.weights=random")
    assert "model.weights=random" in (tmp_path / "train.log").read_text()
    assert (tmp_path / "figures" / "stylized.png").is_file()
    with Image.open(tmp_path / "stylization.gif") as animation:
        animation.seek(1)


def test_gram_matrix_is_normalized_by_the_number_of_elements() -> None:
    features = torch.randn(1, 5, 3, 4)
    flat = features.view(5, 12)
    torch.testing.assert_close(gram_matrix(features)[0], flat @ flat.T / (1 * 5 * 3 * 4))


def test_gram_matrix_and_its_gradient_keep_channels_last() -> None:
    features = torch.rand(1, 5, 3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    last = features.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    plain, other = (torch.autograd.grad(gram_matrix(maps).square().sum(), maps)[0] for maps in (features, last))
    torch.testing.assert_close(gram_matrix(last), gram_matrix(features))
    torch.testing.assert_close(other, plain)
    assert other.is_contiguous(memory_format=torch.channels_last)


def test_clamp_gradient_never_leads_out_of_range() -> None:
    values = torch.tensor([-1.0, -1.0, 0.5, 2.0, 2.0], requires_grad=True)
    image = clamp_keep_gradient(values)
    assert image.tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    (image * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.0, -1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("optimizer", [LBFGS, ADAM], ids=["lbfgs", "adam"])
def test_loss_decreases_and_stays_low(optimizer: dict[str, Any]) -> None:
    learner, data = make_learner(optimizer)
    loss_values = run_steps(learner, data, 60)
    assert loss_values[-1] < 0.2 * loss_values[0]
    assert max(loss_values[30:]) < 2 * min(
        loss_values[30:]
    )  # where the image is clamped in place, L-BFGS leaps here
    assert all(weight.grad is None for weight in learner.technique.get_submodule("features").parameters())


def test_image_is_initialized_with_the_content() -> None:
    learner, data = make_learner(LBFGS)
    assert isinstance(learner.technique, StyleTransfer)
    assert torch.equal(learner.technique.stylize(), data[0]["content"])
    assert run_steps(learner, data, 1)[0] > 0
    assert not torch.equal(learner.technique.stylize(), data[0]["content"])


def test_each_scale_has_an_equal_part_of_the_run() -> None:
    learner, data = make_learner(LBFGS, scales=[0.25, 0.5, 1.0])
    names = [
        set(learner.step(data[0], data, Clock(step, 6, 1))) & set(learner.phase_by_loss) for step in range(1, 7)
    ]
    assert names == [{"scale_1_loss"}] * 2 + [{"scale_2_loss"}] * 2 + [{"scale_3_loss"}] * 2


def test_run_resumed_at_the_next_scale_equals_uninterrupted_run(tmp_path: Path) -> None:
    overrides = (*SMALL_RUN, "model.weights=random", "model.scales=[0.5,1.0]", "model.preserve_color=histogram")
    interval_overrides = ("trainer.epochs=6", "trainer.checkpoint_spacing=0", "trainer.keep_checkpoints=9")
    uninterrupted, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert run_genexp(*overrides, *interval_overrides, run_dir_override(uninterrupted)).exit_code == 0
    shutil.copytree(uninterrupted, resumed)
    for file in list_checkpoints(resumed)[:3]:
        file.unlink()
    (resumed / "status.json").unlink()
    result = run_genexp(f"resume={resumed}")
    assert result.exit_code == 0, result.stderr
    assert_same_run(uninterrupted, resumed)


def test_luminance_mode_keeps_the_colors_of_the_content() -> None:
    learner, data = make_learner(LBFGS, preserve_color="luminance")
    run_steps(learner, data, 5)
    assert isinstance(learner.technique, StyleTransfer)
    image, content = learner.technique.stylize(), data[0]["content"]
    inside = ((image > 0) & (image < 1)).all(1, keepdim=True)
    color, before = image - luminance(image), content - luminance(content)
    torch.testing.assert_close((color * inside), (before * inside), atol=1e-5, rtol=0)
    assert (luminance(image) - luminance(content)).abs().mean() > 0.01


def test_histogram_mode_recolors_the_style_image() -> None:
    content, style = (
        torch.rand(1, 3, 30, 40) * torch.tensor([0.2, 0.5, 0.3]).view(3, 1, 1) + 0.3,
        torch.rand(1, 3, 20, 20),
    )
    same, recolored = COLOR_MODES["histogram"].preprocess(content, style)
    assert torch.equal(same, content)
    torch.testing.assert_close(recolored.mean((0, 2, 3)), content.mean((0, 2, 3)), atol=1e-2, rtol=0)
    covariances = [image[0].flatten(1).cov() for image in (recolored, content)]
    torch.testing.assert_close(*covariances, atol=2e-3, rtol=0)


@pytest.mark.parametrize("size", [(10, 31), (40, 20), (17, 64)])
def test_resize_is_antialiased(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, 24, 36)
    expected = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(resize(images, size), expected)
    assert resize(images, (24, 36)) is images


def test_photographs_keep_their_aspect_ratio() -> None:
    assert load_photographs(100).spec.shapes == {"content": (3, 67, 100), "style": (3, 67, 100)}


def test_photographs_apply_exif_rotation_and_convert_to_rgb(tmp_path: Path) -> None:
    upright = Image.Exif()
    upright[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg", exif=upright)
    Image.new("RGBA", (30, 60), (0, 128, 255, 7)).save(tmp_path / "b.png")
    streams = load_photographs(20, content=str(tmp_path / "a.jpg"), style=str(tmp_path / "b.png")).train.streams
    content, style = streams["content"], streams["style"]
    assert isinstance(content, Tensor)
    assert isinstance(style, Tensor)
    assert content.shape == (1, 3, 20, 10)
    assert style.shape == (1, 3, 20, 10)
    assert style[0, :, 0, 0].tolist() == [0, 128, 255]
    Image.new("L", (9, 9), 77).save(tmp_path / "gray.webp", lossless=True)
    gray = load_photographs(9, content=str(tmp_path / "gray.webp")).train.streams["content"]
    assert isinstance(gray, Tensor)
    assert gray.unique().tolist() == [77]


def test_invalid_photographs_fail_with_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    for file, expected_message in (
        (tmp_path / "absent.jpg", "is no file"),
        (broken, "cannot be read as a picture"),
    ):
        with pytest.raises(DataError, match=expected_message) as excinfo:
            load_photographs(content=str(file))
        assert str(excinfo.value).startswith(f"dataset.content={file}")
        assert "\n" not in str(excinfo.value)


def test_too_small_image_error_gives_the_remedy(tmp_path: Path) -> None:
    result = run_genexp(*SMALL_RUN, "dataset.size=3", "model.weights=random", run_dir_override(tmp_path))
    assert result.exit_code == 1
    assert "vanishes at layer pool_4; raise dataset.size" in result.stderr
