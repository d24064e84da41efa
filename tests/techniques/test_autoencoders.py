"""Autoencoders: what they see, what they are held against, and that they learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.data.loading import make_loader
from genexp.data.stream import select_examples
from genexp.errors import ConfigError
from genexp.losses.reconstruction import RECONSTRUCTION_LOSSES
from genexp.technique import Clock
from genexp.training.trainer import eval_mode
from tests.support.compose import make_technique
from tests.support.digits import CPU, evaluate_on_digits, load_digits, mean_image_mse, train_on_digits

PLAIN_TECHNIQUES = ("stacked_autoencoder", "conv_autoencoder", "latent3d_autoencoder")
DENOISING_TECHNIQUES = ("denoising_autoencoder", "conv_denoising_autoencoder")
ALL_TECHNIQUES = (*PLAIN_TECHNIQUES, *DENOISING_TECHNIQUES)
IMAGE_SHAPE = (1, 16, 18)
CLOCK = Clock(step=5, total_steps=100, steps_per_epoch=10)


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
    assert LOSS_FORMULAS.keys() == RECONSTRUCTION_LOSSES.keys()


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
    """The source computes it, and then feeds the clean image."""
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
        ("stacked_autoencoder", ["model.loss=huber"], "model.loss=huber: choose one of mse, bce, l1"),
        ("stacked_autoencoder", ["model.widths=[]"], "model.widths=[]: use positive widths"),
        ("stacked_autoencoder", ["model.widths=[8,0]"], "model.widths=[8, 0]: use positive widths"),
        ("stacked_autoencoder", ["model.latent_activation=step"], "model.latent_activation=step: choose one of"),
        ("denoising_autoencoder", ["model.noise=-1"], "model.noise=-1.0: use 0 or more"),
        ("conv_autoencoder", ["model.channels=[1,2]"], "model.channels=[1, 2]: give three positive numbers"),
        ("conv_autoencoder", ["model.latent=0"], "model.latent=0: use at least 1"),
        ("conv_denoising_autoencoder", ["model.target=both"], "model.target=both: use clean or noisy"),
        ("conv_denoising_autoencoder", ["model.hidden=0"], "model.hidden=0: use at least 1"),
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
    # The noise is the same whatever the network has learned.
    learned = evaluate_on_digits(train_on_digits(name, steps=3))
    assert {key: learned[key] for key in learned if key.startswith("noisy_")} == {
        key: scores[key] for key in scores if key.startswith("noisy_")
    }


@pytest.mark.parametrize("name", ALL_TECHNIQUES)
def test_preview_shows_rows_of_inputs_and_reconstructions(name: str) -> None:
    model = train_on_digits(name, steps=0).technique
    examples = select_examples(make_loader(load_digits().test, CPU), model.example_count)
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
    """To be much nearer than the best image that is the same for all; share is of its error."""
    scores = evaluate_on_digits(train_on_digits(name, steps, "trainer.batch_size=32"))
    assert scores["mse"] < max_relative_mse * mean_image_mse()
    if name in DENOISING_TECHNIQUES:
        assert scores["psnr"] > scores["noisy_psnr"] + 2
