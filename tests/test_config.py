"""From YAML to typed settings: keys, presets, and what each reference preset holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig

from genexp.config import bind, find_config_dir, require, suggest_choice
from genexp.data.dataset import DataSpec
from genexp.data.registry import find_dataset, list_datasets
from genexp.device import DeviceConfig
from genexp.errors import ConfigError
from genexp.runs.build import TopLevelConfig
from genexp.sweep.config import SweepConfig
from genexp.technique import find_technique
from genexp.training.optimizers import OPTIMIZERS, plan_optimizers
from genexp.training.trainer import TrainerConfig
from tests.support.compose import compose_config, compose_values, field_names, list_config_names, to_plain_dict

# --- Each file has every key of its dataclass, and no other.


@pytest.mark.parametrize("name", list_config_names("optimizer"))
def test_optimizer_file_has_the_keys_of_its_dataclass(name: str) -> None:
    node = yaml.safe_load((find_config_dir() / "optimizer" / f"{name}.yaml").read_text())
    assert node["name"] == name
    assert set(node) == field_names(OPTIMIZERS[name].config_class)


def test_every_optimizer_has_a_file() -> None:
    assert list_config_names("optimizer") == sorted(OPTIMIZERS)


@pytest.mark.parametrize("name", list_config_names("trainer"))
def test_trainer_file_has_the_keys_of_its_dataclass(name: str) -> None:
    node = yaml.safe_load((find_config_dir() / "trainer" / f"{name}.yaml").read_text())
    assert set(node) == field_names(TrainerConfig)


@pytest.mark.parametrize("name", list_config_names("device"))
def test_device_file_has_the_keys_of_its_dataclass(name: str) -> None:
    node = yaml.safe_load((find_config_dir() / "device" / f"{name}.yaml").read_text())
    assert node["name"] == name
    assert set(node) == field_names(DeviceConfig)


@pytest.mark.parametrize("name", list_config_names("dataset"))
def test_dataset_file_has_the_keys_of_its_dataclass(name: str) -> None:
    node = yaml.safe_load((find_config_dir() / "dataset" / f"{name}.yaml").read_text())
    node.pop("defaults", None)
    assert node["name"] == name
    assert set(node) == field_names(find_dataset(name).config_class)


def test_every_dataset_has_a_file() -> None:
    assert list_config_names("dataset") == list_datasets()


def test_top_level_configuration_has_the_keys_of_its_dataclass() -> None:
    groups = {"model", "dataset", "optimizer", "trainer", "device"}
    assert {str(key) for key in compose_config()} - groups - {"sweep"} == field_names(TopLevelConfig)


def test_sweep_section_has_the_keys_of_its_dataclass() -> None:
    assert {str(key) for key in compose_config().sweep} == field_names(SweepConfig)


# --- Each key can be set.


def test_every_key_of_the_trainer_can_be_set() -> None:
    expected: dict[str, Any] = {
        "epochs": 7,
        "max_steps": 11,
        "time_budget": 1.5,
        "batch_size": 13,
        "precision": "bf16",
        "capture": True,
        "gradient_clip": 0.5,
        "ema": 0.9,
        "evaluate_every": 3,
        "preview_every": 4,
        "checkpoint_every": 5,
        "checkpoint_spacing": 6.5,
        "keep_checkpoints": 8,
        "deterministic": True,
        "objective": "psnr",
        "direction": "max",
    }
    assert expected.keys() == field_names(TrainerConfig)
    overrides = [f"trainer.{key}={value}" for key, value in expected.items()]
    assert vars(bind(TrainerConfig, compose_config(*overrides).trainer, "trainer")) == expected


def test_zero_intervals_mean_never() -> None:
    overrides = [f"trainer.{key}=0" for key in ("evaluate_every", "preview_every", "checkpoint_every")]
    settings = bind(TrainerConfig, compose_config(*overrides).trainer, "trainer")
    assert (settings.evaluate_every, settings.preview_every, settings.checkpoint_every) == (0, 0, 0)


def test_optimizer_defaults_come_from_the_model_recipe() -> None:
    recipe = compose_config("model=vae").model.recipe
    assert compose_config("model=vae", "optimizer=rmsprop").optimizer.lr == recipe.lr
    assert compose_config("model=vae", "optimizer=rmsprop", "optimizer.lr=3e-4").optimizer.lr == 3e-4
    assert compose_config("model=vae", "model.recipe.lr=0.5").optimizer.lr == 0.5
    assert compose_config("model=vae", "model.recipe.epochs=3").trainer.epochs == 3


# --- What binding refuses, and how it says so.


@dataclass
class Settings:
    """Some of each kind."""

    count: int
    rate: float
    word: str
    flag: bool
    widths: list[int]
    limit: int | None

    def __post_init__(self) -> None:
        require(self.count > 0, "count", self.count, "use at least 1")


VALID_VALUES: dict[str, Any] = {
    "count": 1,
    "rate": 0.5,
    "word": "a",
    "flag": True,
    "widths": [3, 4],
    "limit": None,
}


def test_valid_values_bind() -> None:
    assert bind(Settings, VALID_VALUES, "group") == Settings(1, 0.5, "a", True, [3, 4], None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("count", "x", "group.count=x: give a whole number"),
        ("count", 2.5, "group.count=2.5: give a whole number"),
        ("count", None, "group.count=null: give a whole number"),
        ("count", [1], "group.count=[1]: give a whole number"),
        ("count", {"a": 1}, "group.count={'a': 1}: give a whole number"),
        ("count", 0, "group.count=0: use at least 1"),
        ("count", "???", "group.count is missing; set group.count=VALUE"),
        ("rate", "fast", "group.rate=fast: give a number"),
        ("word", [1], "group.word=[1]: give a word"),
        ("flag", "perhaps", "group.flag=perhaps: give true or false"),
        ("widths", 5, "group.widths=5: give a list of whole numbers"),
        ("widths", [3, "x"], "group.widths=[3, 'x']: give a list of whole numbers"),
        ("widths", None, "group.widths=null: give a list of whole numbers"),
        ("widths", {"a": 1}, "group.widths={'a': 1}: give a list of whole numbers"),
        ("limit", "all", "group.limit=all: give a whole number or null"),
        ("contu", 5, "group.contu is no key of group; did you mean count?"),
    ],
)
def test_invalid_value_is_reported_with_the_expected_type(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as excinfo:
        bind(Settings, {**VALID_VALUES, key: value}, "group")
    assert str(excinfo.value) == message


def test_missing_key_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"group\.rate is missing"):
        bind(Settings, {key: value for key, value in VALID_VALUES.items() if key != "rate"}, "group")


def test_suggest_choice_returns_the_nearest_or_all_choices() -> None:
    assert suggest_choice("vea", ["vae", "gan"]) == "did you mean vae?"
    assert suggest_choice("zzz", ["vae", "gan"]) == "choose one of: gan, vae"


# --- A phase's own optimizer settings.


def test_phase_settings_override_shared_settings() -> None:
    plan = plan_optimizers(compose_values("model=gan", "optimizer.discriminator.lr=1e-4")["optimizer"])
    shared = compose_config("model=gan").optimizer.lr
    assert plan.bind_phase_config("discriminator").lr == 1e-4
    assert plan.bind_phase_config("generator").lr == shared != 1e-4
    assert plan.bind_phase_config("discriminator").name == plan.bind_phase_config("generator").name == "adam"
    plan.check_phases(["discriminator", "generator"])


def test_phases_default_to_the_shared_value() -> None:
    plan = plan_optimizers(compose_values("model=gan", "optimizer=sgd", "optimizer.lr=0.3")["optimizer"])
    assert plan.bind_phase_config("discriminator").lr == plan.bind_phase_config("generator").lr == 0.3


def test_any_setting_can_be_set_per_phase() -> None:
    overrides = ("model=gan", "+optimizer.generator.betas=[0.1,0.2]", "+optimizer.generator.schedule=linear")
    plan = plan_optimizers(compose_values(*overrides)["optimizer"])
    assert plan.bind_phase_config("generator").to_kwargs()["betas"] == (0.1, 0.2)
    assert plan.bind_phase_config("generator").schedule == "linear"
    assert plan.bind_phase_config("discriminator").schedule == "constant"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.generator.lr=-1", "optimizer.generator.lr=-1.0: use a positive learning rate"),
        (
            "+optimizer.generator.name=sgd",
            "optimizer.generator.name=sgd: all phases have the one of optimizer=NAME",
        ),
        ("+optimizer.generator.beta=1", "optimizer.generator.beta is no key of optimizer.generator"),
    ],
)
def test_invalid_phase_setting_is_reported(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as excinfo:
        plan_optimizers(compose_values("model=gan", override)["optimizer"]).bind_phase_config("generator")
    assert message in str(excinfo.value)


def test_unknown_phase_is_reported() -> None:
    plan = plan_optimizers(compose_values("model=gan", "+optimizer.critic.lr=1")["optimizer"])
    with pytest.raises(ConfigError, match=r"optimizer\.critic names no phase of this model"):
        plan.check_phases(["discriminator", "generator"])


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("adam", "betas", [0.9], "optimizer.betas=[0.9]: give two values"),
        ("adam", "betas", [0.9, 1], "optimizer.betas=[0.9, 1.0]: use values in [0, 1)"),
        ("adam", "eps", 0, "optimizer.eps=0.0: use a positive value"),
        ("adamw", "weight_decay", -1, "optimizer.weight_decay=-1.0: use 0 or more"),
        ("adamw", "lr", float("nan"), "optimizer.lr=nan: use a positive learning rate"),
        ("adam", "warmup_steps", -1, "optimizer.warmup_steps=-1: use 0 or more"),
        ("adam", "decay_start", 1, "optimizer.decay_start=1.0: use a part of the run, 0 <= x < 1"),
        ("sgd", "momentum", -1, "optimizer.momentum=-1.0: use 0 or more"),
        ("sgd", "momentum", 0, "optimizer.nesterov=True: use false, or a positive momentum"),
        ("rmsprop", "alpha", -1, "optimizer.alpha=-1.0: use a value in [0, 1)"),
        ("rmsprop", "momentum", -1, "optimizer.momentum=-1.0: use 0 or more"),
        ("adadelta", "rho", 3, "optimizer.rho=3.0: use a value in [0, 1)"),
        ("lbfgs", "max_iter", 0, "optimizer.max_iter=0: use at least 1"),
        ("lbfgs", "history_size", 0, "optimizer.history_size=0: use at least 1"),
        ("lbfgs", "line_search_fn", "wolf", "optimizer.line_search_fn=wolf: use null or strong_wolfe"),
        ("adagrad", "lr", 1, "optimizer.name=adagrad is no optimizer; did you mean adam?"),
    ],
)
def test_invalid_optimizer_value_is_reported_with_its_key(
    name: str, key: str, value: object, message: str
) -> None:
    settings = compose_values(f"optimizer={name if name in OPTIMIZERS else 'adam'}")["optimizer"]
    if name == "sgd":
        settings["nesterov"] = True
    with pytest.raises(ConfigError) as excinfo:
        plan_optimizers({**settings, "name": name, key: value})
    assert str(excinfo.value) == message


# --- Presets.


def bind_config(cfg: DictConfig) -> tuple[Any, TrainerConfig, Any]:
    """Bind all of a configuration; return (model's settings, trainer's, optimizer's)."""
    config = to_plain_dict(cfg)
    model = {key: value for key, value in config["model"].items() if key not in ("name", "recipe")}
    bind(TopLevelConfig, {key: config[key] for key in field_names(TopLevelConfig)}, "")
    bind(DeviceConfig, config["device"], "device")
    bind(find_dataset(config["dataset"]["name"]).config_class, config["dataset"], "dataset")
    technique: Any = bind(find_technique(config["model"]["name"]).Config, model, "model")
    trainer = bind(TrainerConfig, config["trainer"], "trainer")
    return technique, trainer, plan_optimizers(config["optimizer"]).bind_phase_config("")


@pytest.mark.parametrize("name", list_config_names("experiment"))
def test_a_preset_composes_and_binds(name: str) -> None:
    cfg = compose_config(f"experiment={name}")
    bind_config(cfg)
    assert cfg.model.name == name.removesuffix("_reference")


def linear_weight_shapes(*widths: int) -> list[tuple[int, ...]]:
    """Return the shapes of the weights of linear layers."""
    return [(outputs, inputs) for inputs, outputs in pairwise(widths)]


@dataclass(frozen=True)
class Reference:
    """What a reference preset must hold."""

    dataset: str
    weights: list[tuple[int, ...]]  # shapes, in the order of the networks
    lr: float
    batch_size: int
    epochs: int
    weight_decay: float = 0.0
    model: dict[str, Any] = dataclasses.field(default_factory=dict)


STACKED_WEIGHTS = [*linear_weight_shapes(784, 128, 32, 10), *linear_weight_shapes(10, 32, 128, 784)]
CONV_WEIGHTS = [
    *[(16, 1, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (10, 1024)],
    *[(1024, 10), (64, 32, 3, 3), (32, 16, 3, 3), (16, 1, 3, 3)],  # transposed: inputs first
]
REFERENCES = {
    "stacked_autoencoder": Reference(
        "mnist",
        STACKED_WEIGHTS,
        1e-4,
        50,
        51,
        model={"loss": "mse", "activation": "relu", "latent_activation": "relu"},
    ),
    "denoising_autoencoder": Reference(
        "mnist",
        STACKED_WEIGHTS,
        1e-4,
        50,
        51,
        model={"loss": "mse", "activation": "relu", "latent_activation": "relu", "noise": 0.5},
    ),
    "conv_autoencoder": Reference(
        "mnist",
        CONV_WEIGHTS,
        1e-3,
        50,
        51,
        model={"loss": "mse", "activation": "relu", "latent_activation": "relu"},
    ),
    "conv_denoising_autoencoder": Reference(
        "mnist",
        [
            *[(8, 1, 3, 3), (16, 8, 3, 3), (32, 16, 3, 3), (128, 288), (4, 128)],
            *[(128, 4), (288, 128), (32, 16, 3, 3), (16, 8, 3, 3), (8, 1, 3, 3)],
        ],
        1e-3,
        128,
        30,
        weight_decay=1e-5,
        model={"loss": "mse", "activation": "relu", "noise": 0.3, "target": "noisy"},
    ),
    "latent3d_autoencoder": Reference(
        "fashion_mnist",
        [*linear_weight_shapes(784, 128, 64, 12, 3), *linear_weight_shapes(3, 12, 64, 128, 784)],
        5e-3,
        64,
        10,
        model={"loss": "mse", "activation": "relu", "latent_activation": "linear"},
    ),
    "vae": Reference(
        "mnist",
        [*linear_weight_shapes(784, 400, 400), (200, 400), (200, 400), *linear_weight_shapes(200, 400, 400, 784)],
        1e-3,
        100,
        30,
        model={"activation": "leaky_relu", "beta": 1.0, "kl_warmup_epochs": 0, "free_bits": 0.0},
    ),
    "gan": Reference(
        "fashion_mnist",
        [*linear_weight_shapes(128, 256, 512, 1024, 784), *linear_weight_shapes(784, 1024, 512, 256, 1)],
        2e-4,
        100,
        151,
        model={"dropout": 0.3, "spectral_norm": False, "init_std": None},
    ),
    "dcgan": Reference(
        "fashion_mnist",
        [
            *[(128, 256, 3, 3), (256, 128, 3, 3), (128, 64, 3, 3), (64, 1, 2, 2)],
            *[(128, 1, 3, 3), (256, 128, 3, 3), (256, 256, 3, 3), (1, 256, 3, 3)],
        ],
        2e-4,
        100,
        151,
        model={"dropout": 0.5, "init_std": None},
    ),
    "deep_kmeans": Reference("mnist", [*CONV_WEIGHTS, (10, 10)], 1e-3, 128, 300),
}
WITHOUT_NETWORKS = {"kmeans", "style_transfer"}
REFERENCE_PRESETS = [
    name.removesuffix("_reference") for name in list_config_names("experiment") if name.endswith("_reference")
]


def test_every_reference_preset_is_tested() -> None:
    assert set(REFERENCE_PRESETS) <= REFERENCES.keys() | WITHOUT_NETWORKS


@pytest.mark.parametrize("name", sorted(REFERENCES.keys() & set(REFERENCE_PRESETS)))
def test_reference_preset_matches_the_source(name: str) -> None:
    expected = REFERENCES[name]
    cfg = compose_config(f"experiment={name}_reference")
    config, trainer, optimizer = bind_config(cfg)
    assert (cfg.model.name, cfg.dataset.name, cfg.dataset.limit) == (name, expected.dataset, None)
    assert {key: getattr(config, key) for key in expected.model} == expected.model
    spec = DataSpec(expected.dataset, {"image": (1, 28, 28), "label": ()}, 60_000, tuple("0123456789"))
    technique = find_technique(name)(config, spec)
    weights = [tuple(weight.shape) for weight in technique.parameters() if weight.ndim > 1]
    assert sorted(weights) == sorted(expected.weights)
    assert optimizer.name == "adam"
    # What the model's recipe may change for our own preset must not change the source's.
    assert optimizer.lr == expected.lr
    warmup_steps = (
        300 if name == "deep_kmeans" else 0
    )  # without it the sigmoid saturates with some seeds: all black
    assert (optimizer.schedule, optimizer.warmup_steps) == ("constant", warmup_steps)
    assert optimizer.to_kwargs()["betas"] == (0.9, 0.999)
    assert optimizer.to_kwargs()["weight_decay"] == expected.weight_decay
    assert (trainer.batch_size, trainer.epochs, trainer.max_steps) == (expected.batch_size, expected.epochs, None)
    assert (trainer.ema, trainer.gradient_clip, trainer.precision) == (0.0, None, "fp32")


def test_kmeans_reference_preset_matches_the_source() -> None:
    cfg = compose_config("experiment=kmeans_reference")
    config, trainer, _ = bind_config(cfg)
    assert (cfg.dataset.name, cfg.dataset.n_samples, cfg.dataset.noise) == ("circles", 500, 0.1)
    assert (config.clusters, config.init, config.n_init, trainer.epochs) == (2, "uniform", 1, 5)


def test_style_transfer_reference_preset_matches_the_source() -> None:
    cfg = compose_config("experiment=style_transfer_reference")
    config, trainer, optimizer = bind_config(cfg)
    assert (cfg.dataset.name, cfg.dataset.size) == ("photographs", 256)
    assert list(config.content_layers) == ["conv_4"]
    assert list(config.style_layers) == [f"conv_{number}" for number in range(1, 6)]
    assert (config.content_weight, config.style_weight, config.weights) == (1.0, 1e5, "imagenet")
    assert (optimizer.name, optimizer.lr) == ("lbfgs", 1.0)
    assert optimizer.to_kwargs()["max_iter"] * trainer.epochs == 300


@pytest.mark.parametrize("name", ["gan", "dcgan"])
def test_gan_reference_presets_add_no_layers(name: str) -> None:
    if name not in REFERENCE_PRESETS:
        pytest.skip(f"{name}_reference is not there")
    config, _, _ = bind_config(compose_config(f"experiment={name}_reference"))
    spec = DataSpec("fashion_mnist", {"image": (1, 28, 28), "label": ()}, 60_000)
    layer_types = {type(module).__name__ for module in find_technique(name)(config, spec).modules()}
    assert not {kind for kind in layer_types if "Norm" in kind}
    biases = [weight for weight in find_technique(name)(config, spec).parameters() if weight.ndim == 1]
    assert bool(biases) == (name == "gan")
