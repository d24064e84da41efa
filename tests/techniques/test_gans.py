"""The GANs: their networks, their games, and what is said of a run that goes wrong."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.config import bind
from genexp.data.dataset import Dataset, DataSpec, Split
from genexp.errors import ConfigError
from genexp.losses.adversarial import ADVERSARIAL_LOSSES, gradient_penalty
from genexp.metrics.generation import GenerationMetrics
from genexp.networks.dcgan import LAYOUTS, build_conv_discriminator, build_conv_generator
from genexp.networks.gan import build_dense_discriminator, build_dense_generator
from genexp.technique import Clock, Technique, find_technique
from genexp.techniques._adversarial import BaseGAN, slerp
from genexp.techniques.cgan import ConditionalGAN
from genexp.training.learner import Learner, StepSettings
from genexp.training.optimizers import plan_optimizers
from tests.support.command import TINY_RUN, load_status, read_metrics_log, run_dir_override, run_genexp
from tests.support.compose import compose_values

IMAGE_SHAPE = (1, 28, 28)
GAN_TECHNIQUES = ("gan", "dcgan", "cgan", "wgan_gp")
SMALL_MODEL = ("model.latent=6", "model.evaluation_samples=20")
NARROW_CONV = ("model.generator_width=4", "model.discriminator_width=4")
pytestmark = pytest.mark.usefixtures("one_thread")


def make_gan(name: str, shape: tuple[int, int, int] = IMAGE_SHAPE, *overrides: str, classes: int = 10) -> BaseGAN:
    """Return the technique `name` as its YAML has it, made small."""
    small = (*SMALL_MODEL, "model.hidden=[12,16]") if name == "gan" else (*SMALL_MODEL, *NARROW_CONV)
    values = compose_values(f"model={name}", *small, *overrides)["model"]
    cls = find_technique(values.pop("name"))
    values.pop("recipe")
    shapes: dict[str, tuple[int, ...]] = {"image": shape, "label": ()}
    spec = DataSpec("test", shapes, 100, tuple(f"class {index}" for index in range(classes)))
    torch.manual_seed(0)
    technique: Technique = cls(bind(cls.Config, values, "model"), spec)
    assert isinstance(technique, BaseGAN)
    return technique


def make_learner(technique: Technique) -> Learner:
    plan = plan_optimizers(compose_values(f"model={technique.name}")["optimizer"])
    return Learner(technique, plan, StepSettings(), torch.device("cpu"))


def make_image_batch(count: int = 8, shape: tuple[int, int, int] = IMAGE_SHAPE) -> dict[str, Tensor]:
    """Return random images with labels from 0 to 9, the same at each call."""
    torch.manual_seed(1)
    return {"image": torch.rand(count, *shape), "label": torch.arange(count) % 10}


def record_layer_sizes(
    network: nn.Sequential, inputs: Tensor, layer_class: type[nn.Module]
) -> list[tuple[int, int]]:
    """Return (channels, side) behind each layer of a kind."""
    seen = []
    for module in network:
        inputs = module(inputs)
        if isinstance(module, layer_class):
            seen.append((inputs.shape[1], inputs.shape[-1]))
    return seen


def list_layer_types(network: nn.Sequential) -> list[str]:
    return [type(module).__name__ for module in network]


# Networks


def test_dense_networks_match_the_reference() -> None:
    generator = build_dense_generator(128, [256, 512, 1024], IMAGE_SHAPE)
    discriminator = build_dense_discriminator(IMAGE_SHAPE, [1024, 512, 256], dropout=0.3)
    widths = [(layer.in_features, layer.out_features) for layer in generator if isinstance(layer, nn.Linear)]
    assert widths == [(128, 256), (256, 512), (512, 1024), (1024, 784)]
    widths = [(layer.in_features, layer.out_features) for layer in discriminator if isinstance(layer, nn.Linear)]
    assert widths == [(784, 1024), (1024, 512), (512, 256), (256, 1)]
    assert list_layer_types(generator) == [*["Linear", "LeakyReLU"] * 3, "Linear", "Tanh", "Unflatten"]
    assert list_layer_types(discriminator) == ["Flatten", *["Linear", "LeakyReLU", "Dropout"] * 3, "Linear"]


def test_convolutional_networks_match_the_reference() -> None:
    layout = LAYOUTS["valid"]
    generator = build_conv_generator(128, layout.plan_generator(IMAGE_SHAPE, 64), has_batch_norm=False)
    discriminator = build_conv_discriminator(
        1, layout.plan_discriminator(IMAGE_SHAPE, 128), norm="none", dropout=0.5
    )
    up = record_layer_sizes(generator, torch.randn(2, 128), nn.ConvTranspose2d)
    assert up == [(256, 3), (128, 7), (64, 15), (1, 28)]
    down = record_layer_sizes(discriminator, torch.randn(2, *IMAGE_SHAPE), nn.Conv2d)
    assert down == [(128, 14), (256, 7), (256, 4), (1, 1)]
    assert list_layer_types(generator) == [
        "Unflatten",
        *["ConvTranspose2d", "ReLU"] * 3,
        "ConvTranspose2d",
        "Tanh",
    ]
    assert list_layer_types(discriminator) == [*["Conv2d", "LeakyReLU", "Dropout"] * 3, "Conv2d", "Flatten"]
    last_kernels = [layer.kernel_size for layer in generator if isinstance(layer, nn.ConvTranspose2d)]
    assert last_kernels == [(3, 3), (3, 3), (3, 3), (2, 2)]
    assert not any(name.endswith("bias") for name, _ in [*generator.named_parameters()])
    assert not any(name.endswith("bias") for name, _ in [*discriminator.named_parameters()])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", [5, 8, 16, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_layouts_match_the_image_size(layout: str, side: int, channels: int) -> None:
    shape = (channels, side, side)
    generator = build_conv_generator(5, LAYOUTS[layout].plan_generator(shape, 2), has_batch_norm=True)
    discriminator = build_conv_discriminator(
        channels, LAYOUTS[layout].plan_discriminator(shape, 2), norm="layer", dropout=0.1
    )
    images = generator(torch.randn(3, 5))
    assert images.shape == (3, *shape)
    assert images.abs().max() <= 1
    assert discriminator(images).shape == (3, 1)


def test_doubling_layout_reaches_every_size() -> None:
    for side in range(5, 70):
        generator = build_conv_generator(
            3, LAYOUTS["doubling"].plan_generator((1, side, side), 1), has_batch_norm=False
        )
        assert generator(torch.randn(1, 3)).shape == (1, 1, side, side)


@pytest.mark.parametrize(
    ("layout", "shape", "message"),
    [
        ("doubling", (1, 4, 4), "4×4 pixels are too small"),
        ("valid", (1, 3, 3), "3×3 pixels are too small"),
        ("valid", (1, 20, 20), "out of reach of the valid layout"),
        ("valid", (1, 48, 48), "out of reach of the valid layout"),
        ("doubling", (3, 32, 64), "32×64 pixels are not square"),
        ("valid", (3, 32, 64), "32×64 pixels are not square"),
    ],
)
def test_unsupported_image_sizes_are_reported(layout: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LAYOUTS[layout].plan_generator(shape, 4)


@pytest.mark.parametrize("name", GAN_TECHNIQUES)
def test_every_gan_trains_on_8_by_8_images(name: str) -> None:
    shape = (1, 8, 8)
    learner = make_learner(make_gan(name, shape))
    seen = learner.step(make_image_batch(shape=shape), [], Clock(5, 10, 5))
    assert all(torch.isfinite(value) for value in seen.values())


# Losses


def test_non_saturating_loss_is_the_cross_entropy_of_probabilities() -> None:
    real, fake = torch.randn(6), torch.randn(6)
    adversarial_loss = ADVERSARIAL_LOSSES["non_saturating"]
    ones, zeros = torch.ones(6), torch.zeros(6)
    bce = F.binary_cross_entropy
    torch.testing.assert_close(
        adversarial_loss.discriminator_loss(real, fake), bce(real.sigmoid(), ones) + bce(fake.sigmoid(), zeros)
    )
    torch.testing.assert_close(adversarial_loss.generator_loss(fake), bce(fake.sigmoid(), ones))


@pytest.mark.parametrize(
    ("loss", "discriminator", "generator"),
    [("least_squares", 0.125 + 2.0, 0.5), ("hinge", 0.5 + 3.0, -2.0), ("wasserstein", 1.5, -2.0)],
)
def test_losses_match_their_papers(loss: str, discriminator: float, generator: float) -> None:
    real, fake = torch.tensor([0.5, 0.5]), torch.tensor([2.0, 2.0])
    adversarial_loss = ADVERSARIAL_LOSSES[loss]
    assert adversarial_loss.discriminator_loss(real, fake).item() == pytest.approx(discriminator)
    assert adversarial_loss.generator_loss(fake).item() == pytest.approx(generator)


def test_gradient_penalty_measures_the_slope_and_is_differentiable() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)  # a scorer of slope 5 everywhere
    penalty, slope = gradient_penalty(lambda images: images @ weight, torch.randn(4, 2), torch.randn(4, 2))
    assert slope.item() == pytest.approx(5)
    assert penalty.item() == pytest.approx(16)
    penalty.backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 2 * 4 * torch.tensor([0.6, 0.8]))


# Phases


@pytest.mark.parametrize("name", GAN_TECHNIQUES)
def test_discriminator_phase_changes_only_the_discriminator(name: str) -> None:
    technique = make_gan(name)
    learner = make_learner(technique)
    before = {key: value.clone() for key, value in technique.named_parameters()}
    learner.phases = learner.phases[:1]
    learner.step(make_image_batch(), [], Clock(5, 10, 5))
    moved = {key for key, value in technique.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {f"discriminator.{key}" for key, _ in technique.discriminator.named_parameters()}


def test_real_and_fake_images_are_scored_separately() -> None:
    technique = make_gan("dcgan")
    sizes: list[int] = []
    technique.discriminator.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    technique.discriminator_loss(make_image_batch(8), Clock(1, 10, 5))
    assert sizes == [8, 8]


def test_generator_loss_draws_new_fake_images() -> None:
    technique = make_gan("gan")
    generated: list[Tensor] = []
    technique.generator.register_forward_hook(lambda module, inputs, output: generated.append(output.detach()))
    data = make_image_batch()
    technique.discriminator_loss(data, Clock(1, 10, 5))
    technique.generator_loss(data, Clock(1, 10, 5))
    first, second = generated
    assert not torch.equal(first, second)


def test_critic_steps_precede_the_generator_step() -> None:
    technique = make_gan("wgan_gp", IMAGE_SHAPE, "model.critic_steps=3")
    learner = make_learner(technique)
    weight = next(technique.generator.parameters())
    moves = []
    for step in range(1, 7):
        before = weight.detach().clone()
        seen = learner.step(make_image_batch(), [], Clock(step, 10, 5))
        moves.append(not torch.equal(before, weight))
        assert {"discriminator_loss", "distance", "slope"} <= seen.keys()
        assert "d_real" not in seen  # a critic's scores are no probabilities
    assert moves == [False, False, True] * 2


def test_gradient_penalty_rejects_batch_norm() -> None:
    with pytest.raises(ConfigError, match=r"model\.discriminator_norm=batch"):
        make_gan("wgan_gp", IMAGE_SHAPE, "model.discriminator_norm=batch")


# What is shown


@pytest.mark.parametrize("name", GAN_TECHNIQUES)
def test_previews_use_fixed_noise(name: str) -> None:
    technique = make_gan(name).eval()
    with torch.no_grad():
        first, second = technique.preview(make_image_batch()), technique.preview(make_image_batch())
        gallery = technique.render_gallery(make_image_batch())
    assert torch.equal(first["samples"], second["samples"])
    assert first["samples"].min() >= 0
    assert first["samples"].max() <= 1
    assert gallery["interpolation"].dim() == 4
    assert "fixed_noise" in technique.state_dict()


def test_conditional_grid_has_one_class_per_row() -> None:
    technique = make_gan("cgan").eval()
    assert isinstance(technique, ConditionalGAN)
    inputs_seen: list[Tensor] = []
    technique.generator.register_forward_pre_hook(lambda module, inputs: inputs_seen.append(inputs[0]))
    with torch.no_grad():
        technique.preview(make_image_batch())
    latent = technique.config.latent
    classes = inputs_seen[0][:, latent:].argmax(1).view(10, -1)
    assert torch.equal(classes, torch.arange(10)[:, None].expand_as(classes))
    noise = inputs_seen[0][:, :latent].view(10, -1, latent)
    assert torch.equal(noise, noise[:1].expand_as(noise))  # a column is one style


def test_label_changes_generated_images_and_scores() -> None:
    technique = make_gan("cgan").eval()
    data = make_image_batch(4)
    other = {**data, "label": (data["label"] + 1) % 10}
    with torch.no_grad():
        torch.manual_seed(0)
        generated = technique.generate(data)
        torch.manual_seed(0)
        assert not torch.equal(generated, technique.generate(other))
        assert not torch.equal(technique.score(generated, data), technique.score(generated, other))


def test_conditional_gan_requires_classes() -> None:
    with pytest.raises(ConfigError, match="which classes"):
        make_gan("cgan", classes=0)


def test_slerp_preserves_the_norm() -> None:
    start, end = torch.randn(5, 100), torch.randn(5, 100)
    torch.testing.assert_close(slerp(start, end, 0.0), start)
    torch.testing.assert_close(slerp(start, end, 1.0), end)
    middle = slerp(start, end, 0.5).norm(dim=1)
    assert (middle > 0.8 * start.norm(dim=1)).all()


# What is said


@pytest.mark.parametrize(
    ("means", "message"),
    [
        ({"d_real": 0.6, "d_fake": 0.4, "diversity": 0.9}, None),
        ({"d_real": 0.999, "d_fake": 0.001, "diversity": 0.9}, "discriminator is saturated"),
        ({"d_real": 0.6, "d_fake": 0.4, "diversity": 0.01}, "generator has collapsed"),
    ],
)
def test_known_training_failures_are_diagnosed(means: dict[str, float], message: str | None) -> None:
    warning = make_gan("dcgan").diagnose(means)
    assert warning is None if message is None else warning is not None and message in warning


def test_constant_generator_is_diagnosed_as_collapsed() -> None:
    technique = make_gan("gan")
    for weight in technique.generator.parameters():
        nn.init.zeros_(weight)
    _, seen = technique.discriminator_loss(make_image_batch(), Clock(1, 10, 5))
    warning = technique.diagnose({name: float(value) for name, value in seen.items()})
    assert warning is not None
    assert "collapsed" in warning


# The judge


def make_image_dataset(*, is_labeled: bool = True, name: str = "mnist_5k") -> Dataset:
    """Return a data set of 30 random images, the same for training and test."""
    torch.manual_seed(2)
    streams: dict[str, Any] = {"image": torch.randint(0, 256, (30, *IMAGE_SHAPE), dtype=torch.uint8)}
    if is_labeled:
        streams["label"] = torch.arange(30) % 10
    return Dataset(name, Split(streams), Split(streams), ("zero", "one") if is_labeled else ())


class CountingBatches:
    """Batches that count how often they are gone through."""

    def __init__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        self.batches, self.num_iterations = batches, 0

    def __iter__(self) -> Any:
        self.num_iterations += 1
        return iter(self.batches)


def test_real_features_are_computed_once_and_shared_by_copies() -> None:
    generation_metrics = GenerationMetrics(make_image_dataset())
    samples = CountingBatches([make_image_batch(20)])
    features = generation_metrics.extract_features(make_image_batch(30)["image"])
    first = generation_metrics.compute_scores(samples, [features])
    assert copy.deepcopy(generation_metrics).compute_scores(samples, [features]) == first
    assert samples.num_iterations == 1


def test_frechet_objective_equals_the_versioned_distance() -> None:
    generation_metrics = GenerationMetrics(make_image_dataset())
    scores = generation_metrics.compute_scores(
        [make_image_batch(20)], [generation_metrics.extract_features(make_image_batch(20)["image"])]
    )
    assert scores["frechet"] == scores["frechet_mnist-v1"] == pytest.approx(0, abs=1e-6)


def test_unlabeled_images_are_compared_by_pixels() -> None:
    generation_metrics = GenerationMetrics(make_image_dataset(is_labeled=False, name="pictures"))
    same = generation_metrics.compute_scores(
        [make_image_batch(20)], [generation_metrics.extract_features(make_image_batch(20)["image"])]
    )
    darker = generation_metrics.compute_scores(
        [make_image_batch(20)], [generation_metrics.extract_features(make_image_batch(20)["image"] / 2)]
    )
    assert same["frechet"] == same["frechet_pixels8-v1"] == pytest.approx(0, abs=1e-6)
    assert darker["frechet"] > 1


@pytest.mark.parametrize("name", GAN_TECHNIQUES)
def test_evaluation_scores_generated_images(name: str) -> None:
    technique = make_gan(name).eval()
    technique.prepare_evaluation(make_image_dataset())
    with torch.no_grad():
        scores = technique.evaluate([make_image_batch(20)])
    expected = {"frechet", *(f"{score}_mnist-v1" for score in ("frechet", "precision", "recall", "coverage"))}
    assert expected <= scores.keys()
    assert ("label_accuracy_mnist-v1" in scores) == (name == "cgan")


# Recipes


def test_gan_reference_preset_matches_the_source() -> None:
    cfg = compose_values("experiment=gan_reference")
    assert cfg["model"]["hidden"] == [256, 512, 1024]
    expected = {"latent": 128, "dropout": 0.3, "generator_batch_norm": False, "spectral_norm": False}
    assert expected.items() <= cfg["model"].items()
    check_shared_reference(cfg)


def test_dcgan_reference_preset_matches_the_source() -> None:
    cfg = compose_values("experiment=dcgan_reference")
    expected = {
        "layout": "valid",
        "latent": 128,
        "generator_width": 64,
        "discriminator_width": 128,
        "dropout": 0.5,
    }
    assert expected.items() <= cfg["model"].items()
    assert not cfg["model"]["generator_batch_norm"]
    assert cfg["model"]["discriminator_norm"] == "none"
    check_shared_reference(cfg)


def check_shared_reference(cfg: dict[str, Any]) -> None:
    assert (cfg["model"]["loss"], cfg["model"]["init_std"]) == ("non_saturating", None)
    assert cfg["dataset"]["name"] == "fashion_mnist"
    assert {"batch_size": 100, "epochs": 151, "ema": 0.0}.items() <= cfg["trainer"].items()
    assert {"name": "adam", "lr": 2e-4, "betas": [0.9, 0.999], "schedule": "constant"}.items() <= cfg[
        "optimizer"
    ].items()
    for phase in ("discriminator", "generator"):
        assert cfg["optimizer"][phase] == {"lr": 2e-4}


def test_generator_and_discriminator_have_separate_learning_rates() -> None:
    cfg = compose_values("model=dcgan", "optimizer.lr=1e-3", "optimizer.discriminator.lr=5e-4")
    plan = plan_optimizers(cfg["optimizer"])
    assert plan.bind_phase_config("discriminator").lr == 5e-4
    assert plan.bind_phase_config("generator").lr == 1e-3


def test_run_writes_samples_and_both_losses(tmp_path: Path) -> None:
    result = run_genexp(
        "model=dcgan",
        *TINY_RUN,
        *SMALL_MODEL,
        *NARROW_CONV,
        "trainer.batch_size=8",
        "trainer.epochs=1",
        run_dir_override(tmp_path),
    )
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "samples.gif").is_file()
    state = load_status(tmp_path)
    assert {"discriminator_loss", "generator_loss", "d_real", "d_fake", "diversity"} <= state["train"].keys()
    assert len(read_metrics_log(tmp_path)) == 6  # five steps and an evaluation
