"""GAN techniques: phases, previews, diagnoses and evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genexp.config import bind
from genexp.data.dataset import DataSpec
from genexp.errors import ConfigError
from genexp.technique import Clock, Technique, find_technique
from genexp.techniques._adversarial import BaseGAN
from genexp.techniques.cgan import ConditionalGAN
from genexp.training.learner import Learner, StepSettings
from genexp.training.optimizers import plan_optimizers
from tests.support.command import (
    TINY_RUN_OVERRIDES,
    format_run_dir_override,
    load_status,
    read_metrics_log,
    run_genexp,
)
from tests.support.compose import compose_values
from tests.support.images import IMAGE_SHAPE, make_image_batch, make_image_dataset

GAN_TECHNIQUES = ("gan", "dcgan", "cgan", "wgan_gp")
SMALL_MODEL = ("model.latent=6", "model.evaluation_samples=20")
NARROW_CONV = ("model.generator_width=4", "model.discriminator_width=4")
pytestmark = pytest.mark.usefixtures("one_thread")


def make_gan(name: str, shape: tuple[int, int, int] = IMAGE_SHAPE, *overrides: str, classes: int = 10) -> BaseGAN:
    """Return the technique `name` with the values of its YAML file, with small networks."""
    small = (*SMALL_MODEL, "model.hidden=[12,16]") if name == "gan" else (*SMALL_MODEL, *NARROW_CONV)
    values = compose_values(f"model={name}", *small, *overrides)["model"]
    cls = find_technique(values.pop("name"))
    values.pop("recipe", None)
    shapes: dict[str, tuple[int, ...]] = {"image": shape, "label": ()}
    spec = DataSpec("test", shapes, 100, tuple(f"class {index}" for index in range(classes)))
    torch.manual_seed(0)
    technique: Technique = cls(bind(cls.Config, values, "model"), spec)
    assert isinstance(technique, BaseGAN)
    return technique


def make_learner(technique: Technique) -> Learner:
    plan = plan_optimizers(compose_values(f"model={technique.name}")["optimizer"])
    return Learner(technique, plan, StepSettings(), torch.device("cpu"))


@pytest.mark.parametrize("name", GAN_TECHNIQUES)
def test_every_gan_trains_on_8_by_8_images(name: str) -> None:
    shape = (1, 8, 8)
    learner = make_learner(make_gan(name, shape))
    seen = learner.step(make_image_batch(shape=shape), [], Clock(5, 10, 5))
    assert all(torch.isfinite(value) for value in seen.values())


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
        assert "d_real" not in seen  # scores of a critic are not probabilities
    assert moves == [False, False, True] * 2


def test_gradient_penalty_rejects_batch_norm() -> None:
    with pytest.raises(ConfigError, match=r"model\.discriminator_norm=batch"):
        make_gan("wgan_gp", IMAGE_SHAPE, "model.discriminator_norm=batch")


@pytest.mark.parametrize("name", GAN_TECHNIQUES)
def test_relativistic_loss_with_penalties_and_augmentation_trains_both_networks(name: str) -> None:
    norm = [] if name == "gan" else ["model.discriminator_norm=none"]
    options = ("model.loss=relativistic", "model.r1=0.5", "model.r2=0.1", "model.augmentation=[color,translation]")
    technique = make_gan(name, IMAGE_SHAPE, *options, *norm)
    before = {key: value.clone() for key, value in technique.named_parameters()}
    metrics = make_learner(technique).step(make_image_batch(), [], Clock(5, 10, 5))
    assert {"r1", "r2", "distance"} <= metrics.keys()
    assert metrics["r1"] > 0
    moved = {
        key.split(".")[0] for key, value in technique.named_parameters() if not torch.equal(value, before[key])
    }
    assert moved == {"generator", "discriminator"}


def test_r1_and_r2_add_half_of_the_weighted_squared_slopes() -> None:
    losses = []
    for r1, r2 in ((0.0, 0.0), (3.0, 5.0)):
        overrides = (f"model.r1={r1}", f"model.r2={r2}", "model.discriminator_norm=layer")
        technique = make_gan("dcgan", IMAGE_SHAPE, *overrides)
        torch.manual_seed(1)
        losses.append(technique.discriminator_loss(make_image_batch(), Clock(1, 10, 5)))
    (plain, _), (penalized, metrics) = losses
    torch.testing.assert_close(penalized, plain + 1.5 * metrics["r1"] + 2.5 * metrics["r2"])


def test_discriminator_sees_augmented_images_in_both_phases() -> None:
    technique = make_gan("dcgan", IMAGE_SHAPE, "model.augmentation=[translation]")
    seen: list[Tensor] = []
    technique.augment = lambda images: seen.append(images) or torch.zeros_like(images)  # type: ignore[method-assign, func-returns-value]
    inputs: list[Tensor] = []
    technique.discriminator.register_forward_pre_hook(lambda module, images: inputs.append(images[0]))
    technique.discriminator_loss(make_image_batch(), Clock(1, 10, 5))
    technique.generator_loss(make_image_batch(), Clock(1, 10, 5))
    assert len(seen) == len(inputs) == 3
    assert not any(images.any() for images in inputs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.r1=1", r"model\.r1=1\.0: must be 0, unless discriminator_norm"),
        ("model.r2=-1", r"model\.r2=-1\.0: must be 0 or more"),
        ("model.augmentation=[flip]", r"model\.augmentation=\['flip'\]: must contain only color"),
        ("model.loss=ragan", r"model\.loss=ragan.*relativistic"),
    ],
)
def test_invalid_option_is_rejected(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_gan("dcgan", IMAGE_SHAPE, override)


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
    assert torch.equal(noise, noise[:1].expand_as(noise))  # the same noise in each column


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
    with pytest.raises(ConfigError, match="has no classes"):
        make_gan("cgan", classes=0)


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


@pytest.mark.parametrize("name", GAN_TECHNIQUES)
def test_evaluation_scores_generated_images(name: str) -> None:
    technique = make_gan(name, IMAGE_SHAPE, "model.evaluation_samples=1000").eval()
    technique.prepare_evaluation(make_image_dataset(1000))
    with torch.no_grad():
        scores = technique.evaluate([make_image_batch(1000)])
    expected = {f"{score}_mnist-v1" for score in ("frechet", "precision", "recall", "coverage")}
    assert expected <= scores.keys()
    assert ("label_accuracy_mnist-v1" in scores) == (name == "cgan")
    assert list(scores) == technique.list_metrics()
    assert technique.get_evaluation_options() == {"generated": 1000, "real": 1000}
    assert technique.list_skipped_scores() == {}


@pytest.mark.parametrize("name", GAN_TECHNIQUES)
def test_few_generated_images_have_no_neighborhood_scores(name: str) -> None:
    technique = make_gan(name).eval()
    technique.prepare_evaluation(make_image_dataset(1000))
    with torch.no_grad():
        scores = technique.evaluate([make_image_batch(1000)])
    labels = ["label_accuracy_mnist-v1"] if name == "cgan" else []
    assert list(scores) == technique.list_metrics() == ["frechet_mnist-v1", *labels]
    assert technique.get_evaluation_options() == {"generated": 20, "real": 1000}
    (reason,) = technique.list_skipped_scores().values()
    assert reason.startswith("model.evaluation_samples=20: precision, recall, density and coverage require 1,000.")


def test_a_warning_at_the_start_names_the_scores_that_few_samples_do_not_have(tmp_path: Path) -> None:
    overrides = ("model=gan", *TINY_RUN_OVERRIDES, *SMALL_MODEL, "trainer.batch_size=8", "trainer.max_steps=1")
    objective = ("trainer.objective=precision", "trainer.direction=max")
    result = run_genexp(*overrides, *objective, format_run_dir_override(tmp_path / "failed"))
    assert result.exit_code == 1
    assert "trainer.objective=precision: not a test metric of model=gan on dataset=mnist_5k. " in result.stderr
    result = run_genexp(*overrides, format_run_dir_override(tmp_path / "run"))
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "run" / "train.log").read_text().count("precision, recall, density and coverage") == 1
    assert set(load_status(tmp_path / "run")["test"]) == {"frechet_mnist-v1"}


def test_generator_and_discriminator_have_separate_learning_rates() -> None:
    cfg = compose_values("model=dcgan", "optimizer.lr=1e-3", "optimizer.discriminator.lr=5e-4")
    plan = plan_optimizers(cfg["optimizer"])
    assert plan.get_config("discriminator").lr == 5e-4
    assert plan.get_config("generator").lr == 1e-3


def test_run_writes_samples_and_both_losses(tmp_path: Path) -> None:
    result = run_genexp(
        "model=dcgan",
        *TINY_RUN_OVERRIDES,
        *SMALL_MODEL,
        *NARROW_CONV,
        "trainer.batch_size=8",
        "trainer.epochs=1",
        format_run_dir_override(tmp_path),
    )
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "samples.gif").is_file()
    state = load_status(tmp_path)
    assert {"discriminator_loss", "generator_loss", "d_real", "d_fake", "diversity"} <= state["train"].keys()
    assert len(read_metrics_log(tmp_path)) == 6  # five steps and an evaluation
