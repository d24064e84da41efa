"""Autoencoders: networks, losses, noise, previews and learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.data.loading import make_loader
from genexp.data.stream import select_examples
from genexp.errors import ConfigError
from genexp.losses.reconstruction import RECONSTRUCTION_LOSSES
from genexp.networks.mlp import ACTIVATIONS
from genexp.technique import Clock
from genexp.training.trainer import eval_mode
from tests.support.compose import make_technique
from tests.support.digits import CPU, evaluate_on_digits, load_digits, mean_image_mse, train_on_digits
from tests.support.networks import record_layer_shapes

PLAIN_TECHNIQUES = ("stacked_autoencoder", "conv_autoencoder", "latent3d_autoencoder")
DENOISING_TECHNIQUES = ("denoising_autoencoder", "conv_denoising_autoencoder")
ALL_TECHNIQUES = (*PLAIN_TECHNIQUES, *DENOISING_TECHNIQUES)
IMAGE_SHAPE = (1, 16, 18)
CLOCK = Clock(step=5, total_steps=100, steps_per_epoch=10)
Shape = tuple[int, int, int]
DENSE_TECHNIQUES = ("stacked_autoencoder", "denoising_autoencoder", "latent3d_autoencoder", "vae")
CONV_TECHNIQUES = ("conv_autoencoder", "conv_denoising_autoencoder")


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(8, *IMAGE_SHAPE)


def corrupt_and_decode(model: Any, images: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    corrupted = model.corrupt(images)
    return corrupted, model.decoder(model.encoder(corrupted))


LOSS_FORMULAS = {
    "mse": lambda out, target: (out - target).square().mean(),
    "l1": lambda out, target: (out - target).abs().mean(),
    "bce": lambda out, target: -(target * out.log() + (1 - target) * (1 - out).log()).mean(),
}


def test_every_reconstruction_loss_is_tested() -> None:
    assert sorted(LOSS_FORMULAS) == RECONSTRUCTION_LOSSES.list_names()


@pytest.mark.parametrize("loss", LOSS_FORMULAS)
@pytest.mark.parametrize("name", ALL_TECHNIQUES)
def test_configured_loss_is_computed(name: str, loss: str, images: Tensor) -> None:
    model = make_technique(name, IMAGE_SHAPE, f"model={name}", f"model.loss={loss}")
    _, logits = corrupt_and_decode(model, images, seed=1)
    torch.manual_seed(1)
    computed, _ = model.loss({"image": images}, CLOCK)
    torch.testing.assert_close(computed, LOSS_FORMULAS[loss](logits.sigmoid(), images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PLAIN_TECHNIQUES)
def test_plain_autoencoder_does_not_corrupt_its_input(name: str, images: Tensor) -> None:
    model = make_technique(name, IMAGE_SHAPE, f"model={name}")
    assert model.corrupt(images) is images


@pytest.mark.parametrize(
    ("name", "noise", "clipped"), [(DENOISING_TECHNIQUES[0], 0.5, False), (DENOISING_TECHNIQUES[1], 0.3, True)]
)
def test_noise_has_the_configured_standard_deviation(name: str, noise: float, clipped: bool) -> None:
    model = make_technique(name, IMAGE_SHAPE, f"model={name}", f"model.noise={noise}")
    gray = torch.full((200, *IMAGE_SHAPE), 0.5)
    torch.manual_seed(0)
    added = model.corrupt(gray) - gray
    if clipped:
        assert added.abs().max() == 0.5
        within = (added.abs() < 0.5).float().mean().item()
        assert within == pytest.approx(math.erf(0.5 / noise / math.sqrt(2)), abs=0.01)
    else:
        assert added.std().item() == pytest.approx(noise, rel=0.01)
    assert added.mean().item() == pytest.approx(0.0, abs=0.01)
    assert not torch.equal(model.corrupt(gray), model.corrupt(gray))
    silent = make_technique(name, IMAGE_SHAPE, f"model={name}", "model.noise=0")
    torch.testing.assert_close(silent.corrupt(gray), gray)


@pytest.mark.parametrize("name", DENOISING_TECHNIQUES)
def test_encoder_receives_the_noisy_image(name: str, images: Tensor) -> None:
    """The source computes a noisy image but passes the clean one to the encoder."""
    model = make_technique(name, IMAGE_SHAPE, f"model={name}")
    entered: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    torch.manual_seed(3)
    model.loss({"image": images}, CLOCK)
    torch.manual_seed(3)
    assert torch.equal(entered[0], model.corrupt(images))
    assert not torch.equal(entered[0], images)


@pytest.mark.parametrize(("target", "is_clean"), [("clean", True), ("noisy", False)])
def test_loss_uses_the_configured_target(target: str, is_clean: bool, images: Tensor) -> None:
    name = "conv_denoising_autoencoder"
    model = make_technique(name, IMAGE_SHAPE, f"model={name}", f"model.target={target}")
    seen, logits = corrupt_and_decode(model, images, seed=1)
    torch.manual_seed(1)
    loss, _ = model.loss({"image": images}, CLOCK)
    torch.testing.assert_close(loss, F.mse_loss(logits.sigmoid(), images if is_clean else seen))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("stacked_autoencoder", ["model.loss=huber"], "model.loss=huber: must be one of bce, l1, mse"),
        ("stacked_autoencoder", ["model.widths=[]"], "model.widths=[]: must be positive integers."),
        ("stacked_autoencoder", ["model.widths=[8,0]"], "model.widths=[8, 0]: must be positive integers."),
        ("stacked_autoencoder", ["model.latent_activation=step"], "model.latent_activation=step: must be one of"),
        ("denoising_autoencoder", ["model.noise=-1"], "model.noise=-1.0: must be 0 or more."),
        ("conv_autoencoder", ["model.channels=[1,2]"], "model.channels=[1, 2]: must be three positive integers."),
        ("conv_autoencoder", ["model.latent=0"], "model.latent=0: must be at least 1."),
        ("conv_denoising_autoencoder", ["model.target=both"], "model.target=both: must be clean or noisy."),
        ("conv_denoising_autoencoder", ["model.hidden=0"], "model.hidden=0: must be at least 1."),
    ],
)
def test_invalid_setting_is_reported(name: str, overrides: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError) as excinfo:
        make_technique(name, (1, 28, 28), f"model={name}", *overrides)
    assert message in str(excinfo.value)


@pytest.mark.parametrize("name", DENOISING_TECHNIQUES)
def test_scores_of_noisy_images_are_fixed_by_the_seed(name: str) -> None:
    untrained, other = train_on_digits(name, steps=0), train_on_digits(name, 0, "model.noise=0.1")
    scores = evaluate_on_digits(untrained)
    assert evaluate_on_digits(untrained) == scores
    assert evaluate_on_digits(untrained, seed=1)["noisy_psnr"] != scores["noisy_psnr"]
    assert {
        f"{prefix}{metric}" for prefix in ("", "noisy_", "clean_") for metric in ("mse", "psnr", "ssim")
    } == set(scores)
    assert evaluate_on_digits(other)["noisy_psnr"] > scores["noisy_psnr"] + 5
    # The noise does not depend on the weights.
    learned = evaluate_on_digits(train_on_digits(name, steps=3))
    assert {key: learned[key] for key in learned if key.startswith("noisy_")} == {
        key: scores[key] for key in scores if key.startswith("noisy_")
    }


@pytest.mark.parametrize("name", ALL_TECHNIQUES)
def test_preview_shows_rows_of_inputs_and_reconstructions(name: str) -> None:
    model = train_on_digits(name, steps=0).technique
    examples = select_examples(make_loader(load_digits().test, CPU), model.num_examples)
    with eval_mode(model):
        (image,) = model.preview(examples).values()
    columns, lines = (10, 2) if name in ("stacked_autoencoder", "conv_autoencoder") else (5, 2)
    if name in DENOISING_TECHNIQUES:
        columns, lines = (10 if name == "denoising_autoencoder" else 5), 3
    gap = 2
    assert image.shape == (1, lines * (28 + gap) + gap, columns * (28 + gap) + gap)
    assert image.min() >= 0
    assert image.max() <= 1
    first = image[:, gap : gap + 28, gap : gap + 28]
    assert torch.equal(first, examples["image"][0])


@pytest.mark.parametrize(
    ("name", "steps", "max_relative_mse"),
    [
        ("stacked_autoencoder", 300, 0.6),
        ("conv_autoencoder", 300, 0.65),
        ("latent3d_autoencoder", 300, 0.85),
        ("denoising_autoencoder", 300, 0.65),
        ("conv_denoising_autoencoder", 250, 0.6),
    ],
)
def test_autoencoder_learns_digits_in_a_few_hundred_steps(name: str, steps: int, max_relative_mse: float) -> None:
    """The error is well below that of the mean image, by the factor `max_relative_mse`."""
    scores = evaluate_on_digits(train_on_digits(name, steps, "trainer.batch_size=32"))
    assert scores["mse"] < max_relative_mse * mean_image_mse()
    if name in DENOISING_TECHNIQUES:
        assert scores["psnr"] > scores["noisy_psnr"] + 2


def count_parameters(*networks: nn.Module) -> int:
    return sum(weight.numel() for network in networks for weight in network.parameters())


def test_conv_autoencoder_matches_the_reference_at_28_pixels() -> None:
    technique = make_technique("conv_autoencoder", (1, 28, 28), "experiment=conv_autoencoder_reference")
    assert record_layer_shapes(technique.encoder, torch.zeros(2, 1, 28, 28)) == [
        (16, 13, 13),
        (32, 6, 6),
        (64, 4, 4),
        (10,),
    ]
    assert record_layer_shapes(technique.decoder, torch.zeros(2, 10)) == [
        (1024,),
        (32, 6, 6),
        (16, 13, 13),
        (1, 28, 28),
    ]
    first, second, last = (layer for layer in technique.decoder if isinstance(layer, nn.ConvTranspose2d))
    assert [layer.output_padding for layer in (first, second, last)] == [(0, 0), (0, 0), (1, 1)]
    assert [layer.stride for layer in (first, second, last)] == [(1, 1), (2, 2), (2, 2)]


def test_conv_denoising_autoencoder_matches_the_reference_at_28_pixels() -> None:
    name = "conv_denoising_autoencoder"
    technique = make_technique(name, (1, 28, 28), f"experiment={name}_reference")
    down = [(8, 14, 14), (16, 7, 7), (32, 3, 3), (128,), (4,)]
    assert record_layer_shapes(technique.encoder, torch.zeros(2, 1, 28, 28)) == down
    assert record_layer_shapes(technique.decoder, torch.zeros(2, 4)) == [
        (128,),
        (288,),
        (16, 7, 7),
        (8, 14, 14),
        (1, 28, 28),
    ]
    ups = [layer for layer in technique.decoder if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.output_padding for layer in ups] == [(0, 0), (1, 1), (1, 1)]
    assert [layer.padding for layer in ups] == [(0, 0), (1, 1), (1, 1)]
    layer_types = [type(layer).__name__ for layer in technique.encoder]
    assert layer_types == [
        *("Conv2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "ReLU"),
        *("Flatten", "Linear", "ReLU", "Linear"),
    ]
    assert [type(layer).__name__ for layer in technique.decoder] == [
        *("Linear", "ReLU", "Linear", "ReLU", "Unflatten"),
        *("ConvTranspose2d", "BatchNorm2d", "ReLU", "ConvTranspose2d", "BatchNorm2d", "ReLU", "ConvTranspose2d"),
    ]


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        # Linear a→b has a·b + b parameters; a convolution of kernel 3 from a to b channels has 9·a·b + b.
        (
            "stacked_autoencoder",
            784 * 128 + 128 + 128 * 32 + 32 + 32 * 10 + 10,
            320 + 32 + 4096 + 128 + 100352 + 784,
        ),
        ("conv_autoencoder", 160 + 4640 + 18496 + 10250, 11264 + 18464 + 4624 + 145),
        (
            "conv_denoising_autoencoder",
            80 + 1168 + 32 + 4640 + (288 * 128 + 128) + (128 * 4 + 4),
            (4 * 128 + 128) + (128 * 288 + 288) + (9 * 32 * 16 + 16) + 32 + (9 * 16 * 8 + 8) + 16 + (9 * 8 + 1),
        ),
        (
            "latent3d_autoencoder",
            (784 * 128 + 128) + (128 * 64 + 64) + (64 * 12 + 12) + (12 * 3 + 3),
            (3 * 12 + 12) + (12 * 64 + 64) + (64 * 128 + 128) + (128 * 784 + 784),
        ),
    ],
)
def test_reference_presets_have_the_parameter_counts_of_the_source(name: str, encoder: int, decoder: int) -> None:
    technique = make_technique(name, (1, 28, 28), f"experiment={name}_reference")
    assert (count_parameters(technique.encoder), count_parameters(technique.decoder)) == (encoder, decoder)


def list_activations(network: nn.Module) -> list[str]:
    layer_types = tuple(type(make()) for make in ACTIVATIONS.values())
    return [type(layer).__name__ for layer in network.modules() if isinstance(layer, layer_types)]


def test_reference_presets_have_the_activations_of_the_source() -> None:
    stacked = make_technique("stacked_autoencoder", (1, 28, 28), "experiment=stacked_autoencoder_reference")
    assert list_activations(stacked.encoder) == ["ReLU"] * 3, "the latent layer has an activation"
    assert list_activations(stacked.decoder) == ["ReLU"] * 2
    narrow = make_technique("latent3d_autoencoder", (1, 28, 28), "experiment=latent3d_autoencoder_reference")
    assert list_activations(narrow.encoder) == ["ReLU"] * 3
    assert isinstance(list(narrow.encoder)[-1], nn.Linear), "the latent layer is linear"
    vae = make_technique("vae", (1, 28, 28), "experiment=vae_reference")
    assert list_activations(vae.encoder) == list_activations(vae.decoder) == ["LeakyReLU"] * 2
    assert vae.encoder[2].negative_slope == 0.2


@pytest.mark.parametrize("name", [*DENSE_TECHNIQUES, *CONV_TECHNIQUES])
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 20, 23)], ids=str)
def test_technique_accepts_any_image_shape(name: str, shape: Shape) -> None:
    technique = make_technique(name, shape, f"model={name}")
    images = torch.rand(4, *shape)
    technique.eval()
    back = technique.reconstruct(images)
    assert back.shape == images.shape
    assert back.min() >= 0
    assert back.max() <= 1


@pytest.mark.parametrize("name", CONV_TECHNIQUES)
def test_technique_rejects_images_that_are_too_small(name: str) -> None:
    with pytest.raises(ConfigError, match=r"too small for \d convolutional layers"):
        make_technique(name, (1, 4, 4), f"model={name}")
