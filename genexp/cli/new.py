"""Command `genexp-new technique NAME`: a plugin with a complete technique, and its test."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import sys
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import NoReturn

from genexp.cli.common import CommandParser, run_command
from genexp.config import find_config_dir
from genexp.errors import ConfigError
from genexp.run_dir.paths import format_path

PROGRAM = "genexp-new"
TECHNIQUE = Template('''"""$title: a technique for genexp. Train it with `genexp --plugin $name.py model=$name`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import genexp


@genexp.register_technique("$name")
class $class_name(genexp.Technique):
    """Autoencoder of dense layers, as a start. Replace the networks and the loss."""

    @dataclass
    class Config:
        """Keys of model=$name. Each needs a default. `--cfg job` prints them."""

        hidden: int = 128  # units of the hidden layers
        latent: int = 16  # numbers that describe an image

    # Defaults of optimizer and trainer keys. `objective` is the score that selects the best checkpoint.
    recipe = {"lr": 1e-3, "batch_size": 50, "epochs": 20, "objective": "mse"}  # noqa: RUF012

    def __init__(self, config: Config, spec: Any) -> None:
        """Build the networks. `spec.image_shape` is (channels, height, width)."""
        super().__init__()
        pixels = math.prod(spec.image_shape)
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(config.latent, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, pixels),
            nn.Unflatten(1, spec.image_shape),
        )

    def phases(self) -> tuple[genexp.GradientPhase, ...]:
        """Return what a step does: here, one gradient step of all parameters. A GAN has two phases."""
        return (genexp.GradientPhase("autoencoder", self, self.loss),)

    def loss(self, batch: dict[str, Tensor], clock: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, a mean over the batch, and metrics for the curves.

        `batch["image"]` is (batch, channels, height, width) in [0, 1]. Random numbers are plain torch.randn(...).
        `clock.step` and `clock.epoch` are for schedules.
        """
        codes = self.encoder(batch["image"])
        loss = F.mse_loss(self.decoder(codes).sigmoid(), batch["image"])
        return loss, genexp.detach_metrics(code_size=codes.abs().mean())

    def reconstruct(self, images: Tensor) -> Tensor:
        """Return the reconstructions of images, in [0, 1]."""
        return self.decoder(self.encoder(images)).sigmoid()

    def evaluate(self, test_batches: Any) -> dict[str, float]:
        """Return the scores of the test split."""
        errors = [self.reconstruct(batch["image"]) - batch["image"] for batch in test_batches]
        return {"mse": float(torch.cat(errors).square().mean())}

    def preview(self, examples: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return images that become an animation: here, test images above their reconstructions."""
        images = examples["image"]
        rows = [torch.cat(list(row), dim=2) for row in (images, self.reconstruct(images))]
        return {"reconstructions": torch.cat(rows, dim=1)}

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the codes (batch, latent), for the figure of the latent space."""
        return self.encoder(batch["image"])
''')
TEST = Template('''"""Test of the technique $name. Run it with `pytest test_$name.py`."""

from pathlib import Path

import genexp

PLUGIN = Path(__file__).with_name("$name.py")
SETTINGS = ("model=$name", "dataset.limit=200", "trainer.checkpoint_spacing=0", "device=cpu")


def test_training_lowers_the_error(tmp_path: Path) -> None:
    run = genexp.run(*SETTINGS, "trainer.epochs=5", f"hydra.run.dir='{tmp_path / 'run'}'", plugins=[PLUGIN])
    errors = run.metrics["mse"][run.metrics["split"] == "test"]
    assert errors[-1] < errors[0]


def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = (f"hydra.run.dir='{tmp_path / name}'" for name in ("whole", "parts"))
    expected = genexp.run(*SETTINGS, "trainer.epochs=2", whole, plugins=[PLUGIN])
    first = genexp.run(*SETTINGS, "trainer.epochs=1", parts, plugins=[PLUGIN])
    resumed = genexp.run(f"resume={first.path}", "trainer.epochs=2", plugins=[PLUGIN])
    assert resumed.scores == expected.scores
''')


def main() -> NoReturn:
    """Write the files that the command line asks for."""
    run_command(PROGRAM, lambda: _run(sys.argv[1:]))


def _build_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        PROGRAM, description="Write a plugin with a complete, commented technique, and its test."
    )
    parser.add_argument("kind", choices=["technique"], metavar="technique")
    parser.add_argument("name", metavar="NAME", help="letters, digits and _, for example my_autoencoder")
    parser.add_argument("--dir", type=Path, default=Path(), metavar="DIR", help="default: the working directory")
    return parser


def _run(arguments: Sequence[str]) -> int:
    args = _build_parser().parse_args(arguments)
    name: str = args.name
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigError(f"{name}: not a name. Use letters, digits and _, for example my_autoencoder.")
    words = name.split("_")
    values = {
        "name": name,
        "title": " ".join(words).strip().capitalize() or name,
        "class_name": "".join(word.capitalize() for word in words) or "Technique",
    }
    files = {args.dir / f"{name}.py": TECHNIQUE, args.dir / f"test_{name}.py": TEST}
    for path in files:
        if path.exists():
            raise ConfigError(f"{format_path(path)}: already exists. Use another name.")
    if (find_config_dir() / "model" / f"{name}.yaml").is_file():
        raise ConfigError(f"{name}: a technique of genexp has this name. Use another name.")
    if importlib.util.find_spec(name) is not None:
        raise ConfigError(f"{name}: an installed Python module has this name. Use another name.")
    args.dir.mkdir(parents=True, exist_ok=True)
    for path, template in files.items():
        path.write_text(template.substitute(values), encoding="utf-8")
        print(format_path(path))
    plugin, test = map(format_path, files)
    print(f"train: genexp --plugin {plugin} model={name}\ntest:  pytest {test}")
    return 0


if __name__ == "__main__":
    main()
