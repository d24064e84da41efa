"""The GANs: their networks, their games, and what is said of a run that goes wrong."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor, nn

from genexp.config import bind, find_config_dir
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
from tests.support.command import TINY, genexp, in_folder, metrics, status

GRAY = (1, 28, 28)
MODELS = ("gan", "dcgan", "cgan", "wgan_gp")
SMALL = ("model.latent=6", "model.evaluation_samples=20")
NARROW = ("model.generator_width=4", "model.discriminator_width=4")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep a busy machine from making tiny networks wait for their threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        cfg = OmegaConf.to_container(compose("train", overrides=list(overrides)), resolve=True)
    assert isinstance(cfg, dict)
    return {str(key): value for key, value in cfg.items()}


def built(name: str, shape: tuple[int, int, int] = GRAY, *overrides: str, classes: int = 10) -> BaseGAN:
    """Return the technique `name` as its YAML has it, made small."""
    small = (*SMALL, "model.hidden=[12,16]") if name == "gan" else (*SMALL, *NARROW)
    values = dict(composed(f"model={name}", *small, *overrides)["model"])
    cls = find_technique(values.pop("name"))
    values.pop("recipe")
    shapes: dict[str, tuple[int, ...]] = {"image": shape, "label": ()}
    spec = DataSpec("test", shapes, 100, tuple(f"class {index}" for index in range(classes)))
    torch.manual_seed(0)
    technique: Technique = cls(bind(cls.Config, values, "model"), spec)
    assert isinstance(technique, BaseGAN)
    return technique


def learner_of(technique: Technique) -> Learner:
    plan = plan_optimizers(composed(f"model={technique.name}")["optimizer"])
    return Learner(technique, plan, StepSettings(), torch.device("cpu"))


def batch(count: int = 8, shape: tuple[int, int, int] = GRAY) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"image": torch.rand(count, *shape), "label": torch.arange(count) % 10}


def sides(network: nn.Sequential, inputs: Tensor, kind: type[nn.Module]) -> list[tuple[int, int]]:
    """Return (channels, side) behind each layer of a kind."""
    seen = []
    for module in network:
        inputs = module(inputs)
        if isinstance(module, kind):
            seen.append((inputs.shape[1], inputs.shape[-1]))
    return seen


def kinds(network: nn.Sequential) -> list[str]:
    return [type(module).__name__ for module in network]


# Networks


def test_dense_networks_are_the_references() -> None:
    generator = build_dense_generator(128, [256, 512, 1024], GRAY)
    discriminator = build_dense_discriminator(GRAY, [1024, 512, 256], dropout=0.3)
    widths = [(layer.in_features, layer.out_features) for layer in generator if isinstance(layer, nn.Linear)]
    assert widths == [(128, 256), (256, 512), (512, 1024), (1024, 784)]
    widths = [(layer.in_features, layer.out_features) for layer in discriminator if isinstance(layer, nn.Linear)]
    assert widths == [(784, 1024), (1024, 512), (512, 256), (256, 1)]
    assert kinds(generator) == [*["Linear", "LeakyReLU"] * 3, "Linear", "Tanh", "Unflatten"]
    assert kinds(discriminator) == ["Flatten", *["Linear", "LeakyReLU", "Dropout"] * 3, "Linear"]


def test_convolutional_networks_are_the_references() -> None:
    layout = LAYOUTS["valid"]
    generator = build_conv_generator(128, layout.plan_generator(GRAY, 64), has_batch_norm=False)
    discriminator = build_conv_discriminator(1, layout.plan_discriminator(GRAY, 128), norm="none", dropout=0.5)
    up = sides(generator, torch.randn(2, 128), nn.ConvTranspose2d)
    assert up == [(256, 3), (128, 7), (64, 15), (1, 28)]
    down = sides(discriminator, torch.randn(2, *GRAY), nn.Conv2d)
    assert down == [(128, 14), (256, 7), (256, 4), (1, 1)]
    assert kinds(generator) == ["Unflatten", *["ConvTranspose2d", "ReLU"] * 3, "ConvTranspose2d", "Tanh"]
    assert kinds(discriminator) == [*["Conv2d", "LeakyReLU", "Dropout"] * 3, "Conv2d", "Flatten"]
    last_kernels = [layer.kernel_size for layer in generator if isinstance(layer, nn.ConvTranspose2d)]
    assert last_kernels == [(3, 3), (3, 3), (3, 3), (2, 2)]
    assert not any(name.endswith("bias") for name, _ in [*generator.named_parameters()])
    assert not any(name.endswith("bias") for name, _ in [*discriminator.named_parameters()])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", [5, 8, 16, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_layouts_fit_the_image(layout: str, side: int, channels: int) -> None:
    shape = (channels, side, side)
    generator = build_conv_generator(5, LAYOUTS[layout].plan_generator(shape, 2), has_batch_norm=True)
    discriminator = build_conv_discriminator(
        channels, LAYOUTS[layout].plan_discriminator(shape, 2), norm="layer", dropout=0.1
    )
    images = generator(torch.randn(3, 5))
    assert images.shape == (3, *shape)
    assert images.abs().max() <= 1
    assert discriminator(images).shape == (3, 1)


def test_doubling_reaches_every_size() -> None:
    for side in range(5, 70):
        generator = build_conv_generator(
            3, LAYOUTS["doubling"].plan_generator((1, side, side), 1), has_batch_norm=False
        )
        assert generator(torch.randn(1, 3)).shape == (1, 1, side, side)


@pytest.mark.parametrize(
    ("layout", "shape", "said"),
    [
        ("doubling", (1, 4, 4), "4×4 pixels are too small"),
        ("valid", (1, 3, 3), "3×3 pixels are too small"),
        ("valid", (1, 20, 20), "out of reach of the valid layout"),
        ("valid", (1, 48, 48), "out of reach of the valid layout"),
        ("doubling", (3, 32, 64), "32×64 pixels are not square"),
        ("valid", (3, 32, 64), "32×64 pixels are not square"),
    ],
)
def test_sizes_that_cannot_work_are_named(layout: str, shape: tuple[int, int, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        LAYOUTS[layout].plan_generator(shape, 4)


@pytest.mark.parametrize("name", MODELS)
def test_learns_on_eight_by_eight_pixels(name: str) -> None:
    shape = (1, 8, 8)
    learner = learner_of(built(name, shape))
    seen = learner.step(batch(shape=shape), [], Clock(5, 10, 5))
    assert all(torch.isfinite(value) for value in seen.values())


# Losses


def test_the_loss_on_logits_is_the_cross_entropy_of_probabilities() -> None:
    real, fake = torch.randn(6), torch.randn(6)
    game = ADVERSARIAL_LOSSES["non_saturating"]
    ones, zeros = torch.ones(6), torch.zeros(6)
    bce = F.binary_cross_entropy
    torch.testing.assert_close(
        game.discriminator_loss(real, fake), bce(real.sigmoid(), ones) + bce(fake.sigmoid(), zeros)
    )
    torch.testing.assert_close(game.generator_loss(fake), bce(fake.sigmoid(), ones))


@pytest.mark.parametrize(
    ("loss", "discriminator", "generator"),
    [("least_squares", 0.125 + 2.0, 0.5), ("hinge", 0.5 + 3.0, -2.0), ("wasserstein", 1.5, -2.0)],
)
def test_losses_are_their_papers(loss: str, discriminator: float, generator: float) -> None:
    real, fake = torch.tensor([0.5, 0.5]), torch.tensor([2.0, 2.0])
    game = ADVERSARIAL_LOSSES[loss]
    assert game.discriminator_loss(real, fake).item() == pytest.approx(discriminator)
    assert game.generator_loss(fake).item() == pytest.approx(generator)


def test_the_penalty_measures_the_slope_and_teaches_the_scorer() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)  # a scorer of slope 5 everywhere
    penalty, slope = gradient_penalty(lambda images: images @ weight, torch.randn(4, 2), torch.randn(4, 2))
    assert slope.item() == pytest.approx(5)
    assert penalty.item() == pytest.approx(16)
    penalty.backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 2 * 4 * torch.tensor([0.6, 0.8]))


# Phases


@pytest.mark.parametrize("name", MODELS)
def test_each_player_moves_only_itself(name: str) -> None:
    technique = built(name)
    learner = learner_of(technique)
    before = {key: value.clone() for key, value in technique.named_parameters()}
    learner.phases = learner.phases[:1]
    learner.step(batch(), [], Clock(5, 10, 5))
    moved = {key for key, value in technique.named_parameters() if not torch.equal(value, before[key])}
    assert moved == {f"discriminator.{key}" for key, _ in technique.discriminator.named_parameters()}


def test_real_and_fake_are_scored_apart() -> None:
    technique = built("dcgan")
    sizes: list[int] = []
    technique.discriminator.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    technique.discriminator_loss(batch(8), Clock(1, 10, 5))
    assert sizes == [8, 8]


def test_the_generator_is_judged_by_fresh_fakes() -> None:
    technique = built("gan")
    made: list[Tensor] = []
    technique.generator.register_forward_hook(lambda module, inputs, output: made.append(output.detach()))
    data = batch()
    technique.discriminator_loss(data, Clock(1, 10, 5))
    technique.generator_loss(data, Clock(1, 10, 5))
    first, second = made
    assert not torch.equal(first, second)


def test_the_critic_takes_its_steps_before_the_generator() -> None:
    technique = built("wgan_gp", GRAY, "model.critic_steps=3")
    learner = learner_of(technique)
    weight = next(technique.generator.parameters())
    moves = []
    for step in range(1, 7):
        before = weight.detach().clone()
        seen = learner.step(batch(), [], Clock(step, 10, 5))
        moves.append(not torch.equal(before, weight))
        assert {"discriminator_loss", "distance", "slope"} <= seen.keys()
        assert "d_real" not in seen  # a critic's scores are no probabilities
    assert moves == [False, False, True] * 2


def test_a_penalized_critic_refuses_batch_norm() -> None:
    with pytest.raises(ConfigError, match=r"model\.discriminator_norm=batch"):
        built("wgan_gp", GRAY, "model.discriminator_norm=batch")


# What is shown


@pytest.mark.parametrize("name", MODELS)
def test_pictures_are_the_same_until_the_generator_moves(name: str) -> None:
    technique = built(name).eval()
    with torch.no_grad():
        first, second = technique.preview(batch()), technique.preview(batch())
        gallery = technique.render_gallery(batch())
    assert torch.equal(first["samples"], second["samples"])
    assert first["samples"].min() >= 0
    assert first["samples"].max() <= 1
    assert gallery["interpolation"].dim() == 4
    assert "fixed_noise" in technique.state_dict()


def test_a_conditional_grid_has_one_class_a_row() -> None:
    technique = built("cgan").eval()
    assert isinstance(technique, ConditionalGAN)
    asked: list[Tensor] = []
    technique.generator.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[0]))
    with torch.no_grad():
        technique.preview(batch())
    latent = technique.config.latent
    classes = asked[0][:, latent:].argmax(1).view(10, -1)
    assert torch.equal(classes, torch.arange(10)[:, None].expand_as(classes))
    noise = asked[0][:, :latent].view(10, -1, latent)
    assert torch.equal(noise, noise[:1].expand_as(noise))  # a column is one style


def test_the_label_changes_what_is_made_and_how_it_is_scored() -> None:
    technique = built("cgan").eval()
    data = batch(4)
    other = {**data, "label": (data["label"] + 1) % 10}
    with torch.no_grad():
        torch.manual_seed(0)
        made = technique.generate(data)
        torch.manual_seed(0)
        assert not torch.equal(made, technique.generate(other))
        assert not torch.equal(technique.score(made, data), technique.score(made, other))


def test_a_conditional_gan_needs_classes() -> None:
    with pytest.raises(ConfigError, match="which classes"):
        built("cgan", classes=0)


def test_interpolation_keeps_the_length_of_noise() -> None:
    start, end = torch.randn(5, 100), torch.randn(5, 100)
    torch.testing.assert_close(slerp(start, end, 0.0), start)
    torch.testing.assert_close(slerp(start, end, 1.0), end)
    middle = slerp(start, end, 0.5).norm(dim=1)
    assert (middle > 0.8 * start.norm(dim=1)).all()


# What is said


@pytest.mark.parametrize(
    ("means", "said"),
    [
        ({"d_real": 0.6, "d_fake": 0.4, "diversity": 0.9}, None),
        ({"d_real": 0.999, "d_fake": 0.001, "diversity": 0.9}, "discriminator is saturated"),
        ({"d_real": 0.6, "d_fake": 0.4, "diversity": 0.01}, "generator has collapsed"),
    ],
)
def test_known_failures_are_named(means: dict[str, float], said: str | None) -> None:
    warning = built("dcgan").diagnose(means)
    assert warning is None if said is None else warning is not None and said in warning


def test_a_generator_of_one_image_is_called_collapsed() -> None:
    technique = built("gan")
    for weight in technique.generator.parameters():
        nn.init.zeros_(weight)
    _, seen = technique.discriminator_loss(batch(), Clock(1, 10, 5))
    warning = technique.diagnose({name: float(value) for name, value in seen.items()})
    assert warning is not None
    assert "collapsed" in warning


# The judge


def dataset(*, labels: bool = True, name: str = "mnist_5k") -> Dataset:
    torch.manual_seed(2)
    streams: dict[str, Any] = {"image": torch.randint(0, 256, (30, *GRAY), dtype=torch.uint8)}
    if labels:
        streams["label"] = torch.arange(30) % 10
    return Dataset(name, Split(streams), Split(streams), ("zero", "one") if labels else ())


class Counted:
    """Batches that count how often they are gone through."""

    def __init__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        self.batches, self.rounds = batches, 0

    def __iter__(self) -> Any:
        self.rounds += 1
        return iter(self.batches)


def test_real_images_are_seen_once_by_a_judge_and_its_copies() -> None:
    judge = GenerationMetrics(dataset())
    samples = Counted([batch(20)])
    features = judge.extract_features(batch(30)["image"])
    first = judge.compute_scores(samples, [features])
    assert copy.deepcopy(judge).compute_scores(samples, [features]) == first
    assert samples.rounds == 1


def test_the_objective_is_the_distance_of_the_versioned_feature_space() -> None:
    judge = GenerationMetrics(dataset())
    scores = judge.compute_scores([batch(20)], [judge.extract_features(batch(20)["image"])])
    assert scores["frechet"] == scores["frechet_mnist-v1"] == pytest.approx(0, abs=1e-6)


def test_without_labels_images_are_compared_by_their_pixels() -> None:
    judge = GenerationMetrics(dataset(labels=False, name="pictures"))
    same = judge.compute_scores([batch(20)], [judge.extract_features(batch(20)["image"])])
    darker = judge.compute_scores([batch(20)], [judge.extract_features(batch(20)["image"] / 2)])
    assert same["frechet"] == same["frechet_pixels8-v1"] == pytest.approx(0, abs=1e-6)
    assert darker["frechet"] > 1


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_scores_generated_images(name: str) -> None:
    technique = built(name).eval()
    technique.prepare_evaluation(dataset())
    with torch.no_grad():
        scores = technique.evaluate([batch(20)])
    wanted = {"frechet", *(f"{score}_mnist-v1" for score in ("frechet", "precision", "recall", "coverage"))}
    assert wanted <= scores.keys()
    assert ("label_accuracy_mnist-v1" in scores) == (name == "cgan")


# Recipes


def test_the_gan_preset_is_the_reference() -> None:
    cfg = composed("experiment=gan_reference")
    assert cfg["model"]["hidden"] == [256, 512, 1024]
    expected = {"latent": 128, "dropout": 0.3, "generator_batch_norm": False, "spectral_norm": False}
    assert expected.items() <= cfg["model"].items()
    check_shared_reference(cfg)


def test_the_dcgan_preset_is_the_reference() -> None:
    cfg = composed("experiment=dcgan_reference")
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


def test_each_player_has_a_rate_of_its_own() -> None:
    cfg = composed("model=dcgan", "optimizer.lr=1e-3", "optimizer.discriminator.lr=5e-4")
    plan = plan_optimizers(cfg["optimizer"])
    assert plan.bind_phase_config("discriminator").lr == 5e-4
    assert plan.bind_phase_config("generator").lr == 1e-3


def test_a_run_writes_its_samples_and_both_losses(tmp_path: Path) -> None:
    ended = genexp(
        "model=dcgan", *TINY, *SMALL, *NARROW, "trainer.batch_size=8", "trainer.epochs=1", in_folder(tmp_path)
    )
    assert ended.code == 0, ended.err
    assert (tmp_path / "samples.gif").is_file()
    state = status(tmp_path)
    assert {"discriminator_loss", "generator_loss", "d_real", "d_fake", "diversity"} <= state["train"].keys()
    assert len(metrics(tmp_path)) == 6  # five steps and an evaluation
