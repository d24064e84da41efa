"""Losses and networks of a plugin in each family of techniques: they are used, and have options of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from genexp.registry import set_plugins
from tests.support.command import (
    TINY_RUN_OVERRIDES,
    format_run_dir_override,
    get_error_line,
    read_metrics_log,
    run_genexp,
)
from tests.support.compose import make_tiny_overrides
from tests.support.plugins import write_plugin

SOURCE = """
from torch import nn
from torch.nn import functional as F

@genexp.register_loss("foreign", kind="reconstruction")
def reconstruction(logits, target, factor: float = 1.0):
    return factor * F.huber_loss(logits.sigmoid(), target)

@genexp.register_loss("foreign", kind="regression")
def regression(prediction, target, factor: float = 1.0):
    return factor * F.smooth_l1_loss(prediction, target)

@genexp.register_loss("foreign", kind="content")
def content(features, target, factor: float = 1.0):
    return factor * F.smooth_l1_loss(features, target)

@genexp.register_loss("foreign", kind="style")
def style(features, factor: float = 1.0):
    return factor * features.mean((2, 3))

@genexp.register_loss("foreign", kind="clustering")
def clustering(codes, centers, eval_codes, shares, factor: float = 1.0):
    return factor * torch.cdist(codes, centers).min(1).values.mean()

@genexp.register_loss("foreign", kind="adversarial")
class Adversarial:
    def __init__(self, factor: float = 1.0):
        self.factor = factor
    def discriminator_loss(self, real_scores, fake_scores):
        return self.factor * (F.softplus(-real_scores).mean() + F.softplus(fake_scores).mean())
    def generator_loss(self, fake_scores, compute_real_scores):
        return self.factor * F.softplus(-fake_scores).mean()
    def real_probability(self, scores):
        return None

@genexp.register_loss("foreign", kind="likelihood")
class Likelihood(nn.Module):
    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = factor
    def log_prob(self, outputs, images):
        return -self.factor * (outputs.sigmoid() - images).abs().flatten(1).sum(1)
    def mean(self, outputs):
        return outputs.sigmoid()

@genexp.register_network("foreign", kind="encoder")
def encoder(shape, size, width: int = 6):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Tanh(), nn.Linear(width, size))

@genexp.register_network("foreign", kind="decoder")
def decoder(shape, size, width: int = 6):
    last = nn.Linear(width, torch.Size(shape).numel())
    return nn.Sequential(nn.Linear(size, width), nn.Tanh(), last, nn.Unflatten(1, shape))

@genexp.register_network("foreign", kind="generator")
def generator(shape, size, width: int = 6):
    return nn.Sequential(decoder(shape, size, width), nn.Tanh())

@genexp.register_network("foreign", kind="discriminator")
def discriminator(shape, size, width: int = 6):
    return encoder(shape, size, width)

@genexp.register_network("foreign", kind="translator")
def translator(shape, size, width: int = 6):
    return nn.Sequential(nn.Conv2d(shape[0], width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, size, 1), nn.Tanh())

@genexp.register_network("foreign", kind="velocity")
class Velocity(nn.Module):
    def __init__(self, shape, size, width: int = 6):
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        self.first, self.last = nn.Conv2d(shape[0], width, 1), nn.Conv2d(width, shape[0], 1)
    def forward(self, images, times, classes):
        features = self.first(images) + (self.embedding(classes) + times[:, None])[:, :, None, None]
        return self.last(features.relu())

@genexp.register_network("wrong", kind="encoder")
def wrong(shape, size):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(size + 1))

@genexp.register_network("broken", kind="encoder")
def broken(shape, size):
    return nn.Linear(3, size)
"""
# Technique, key of the loss, name of a metric that grows with the loss, and further overrides.
LOSSES = [
    ("stacked_autoencoder", "loss", "loss", []),
    ("vae", "likelihood", "reconstruction", ["model.pixels=gray"]),
    ("vq_vae", "loss", "reconstruction", []),
    ("dcgan", "loss", "generator_loss", []),
    ("pix2pix", "loss", "discriminator_loss", ["dataset=edges"]),
    ("flow_matching", "loss", "loss", []),
    ("style_transfer", "style_loss", "style_random", []),
    ("style_transfer", "content_loss", "content_random", []),
    ("deep_kmeans", "pull", "distance", ["model.pretrain=0"]),
]
NETWORKS = [
    *((name, "encoder") for name in ("stacked_autoencoder", "conv_denoising_autoencoder", "deep_kmeans", "vae")),
    *((name, "decoder") for name in ("conv_autoencoder", "vae")),
    *((name, kind) for name in ("gan", "cgan") for kind in ("generator", "discriminator")),
    *(("vq_vae", kind) for kind in ("encoder", "decoder")),
    ("flow_matching", "velocity"),
    *((name, kind) for name in ("pix2pix", "cyclegan") for kind in ("translator", "discriminator")),
]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the path of a plugin with a loss of each kind and networks."""
    yield write_plugin(tmp_path_factory.mktemp("plugin"), SOURCE)
    set_plugins([])


def train(plugin: Path, run_dir: Path, *overrides: str) -> list[dict]:
    """Return the log of a run of three steps."""
    steps = ("trainer.max_steps=3", "trainer.evaluate_every=0", "trainer.preview_every=0", "seed=3")
    command = ("--plugin", str(plugin), *overrides, *steps, format_run_dir_override(run_dir))
    result = run_genexp(*command)
    assert result.exit_code == 0, result.stderr
    return read_metrics_log(run_dir)


@pytest.mark.parametrize(("name", "key", "metric", "overrides"), LOSSES, ids=lambda value: str(value))
def test_foreign_loss_is_used_with_its_options(
    name: str, key: str, metric: str, overrides: list[str], plugin: Path, tmp_path: Path
) -> None:
    values = []
    for factor in (1, 3):
        options = (f"model.{key}=foreign", f"model.{key}_options.factor={factor}", *overrides)
        log = train(plugin, tmp_path / str(factor), *make_tiny_overrides(name), *options)
        # The content loss of the first step is 0 where nothing is rounded: the image starts as the content.
        values.append(next((row[metric] for row in log if row.get(metric, 0) > 0), 0))
    power = 2 if key == "style_loss" else 1  # the loss is the squared error of the statistic
    assert values[1] == pytest.approx(3**power * values[0], rel=0.02)
    assert values[0] > 0


@pytest.mark.parametrize(("name", "kind"), NETWORKS)
def test_foreign_network_is_used_with_its_options(name: str, kind: str, plugin: Path, tmp_path: Path) -> None:
    sizes = []
    for width in (5, 6):
        options = (f"model.{kind}=foreign", f"model.{kind}_options.width={width}")
        train(plugin, tmp_path / str(width), *make_tiny_overrides(name), *options)
        log = (tmp_path / str(width) / "train.log").read_text()
        sizes.append(int("".join(filter(str.isdecimal, log.split("parameters")[0].split("·")[-1]))))
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.encoder=absent"], "model.encoder=absent: must be one of broken, dense, foreign, wrong"),
        (["model.encoder=wrong"], "model.encoder=wrong: returns the shape (2, 11) for inputs (2, 1, 28, 28)"),
        (["model.encoder=broken"], "model.encoder=broken: not built (RuntimeError: mat1 and mat2"),
        (
            ["model.encoder=foreign", "model.encoder_options.depth=2"],
            "model.encoder_options.depth=2: unknown option. Did you mean",
        ),
        (
            ["model.decoder=dense", "model.decoder_options.hidden=3"],
            "model.decoder_options.hidden=3: must be a value",
        ),
        (
            ["model.loss_options={factor: 2}"],
            "model.loss_options.factor=2: unknown option. Remove it: it takes no options",
        ),
        (["model.loss_options=3"], "model.loss_options=3: must be a mapping"),
        (["model.encoder_options.width=3"], "requires a network by name. Use model.encoder=NAME"),
    ],
)
def test_mistakes_are_one_line(
    overrides: list[str], message: str, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ("--plugin", str(plugin), "model=stacked_autoencoder", *TINY_RUN_OVERRIDES)
    assert message in get_error_line(run_genexp(*command, *overrides), "genexp")
