"""The class-conditional GAN: a convolutional one that is told what to make (Mirza & Osindero 2014)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.data.dataset import DataSpec
from genexp.errors import ConfigError
from genexp.images.grid import tile
from genexp.technique import Batch, Batches, register
from genexp.techniques._adversarial import ConvAdversarial, ConvAdversarialConfig

COLUMNS = 10  # images of each class in a picture
MOST_ROWS = 20  # classes in a picture


@register
class ConditionalGan(ConvAdversarial):
    """The generator sees the class beside the noise; the discriminator projects on it (Miyato & Koyama 2018).

    Its last layer has an output for realness and one more for each class: score(x, y) = (w + w_y)·features(x).
    """

    Config = ConvAdversarialConfig
    name = "cgan"

    def build(self, spec: DataSpec) -> tuple[nn.Module, nn.Module]:
        spec.shape("label")
        self.classes = self.inputs = len(spec.class_names)
        if not self.classes:
            raise ConfigError(
                f"dataset={spec.name} does not say which classes it has; choose another, or model=dcgan"
            )
        self.outputs = 1 + self.classes
        return super().build(spec)

    def fakes(self, batch: Batch) -> Tensor:
        return self.generator(self.inputs_for(self.noise(len(batch["label"])), batch["label"]))

    def score(self, images: Tensor, batch: Batch) -> Tensor:
        outputs = self.discriminator(images)  # (batch, 1 + classes)
        return outputs[:, 0] + outputs[:, 1:].gather(1, batch["label"][:, None]).squeeze(1)

    def inputs_for(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return the generator's inputs (count, latent + classes)."""
        return torch.cat([noise, F.one_hot(labels, self.classes).to(noise)], dim=1)

    def show(self, noise: Tensor) -> Tensor:
        """Return images in [0, 1] of noise (count, latent), the classes in turn."""
        return super().show(self.inputs_for(noise, self._in_turn(len(noise))))

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        """Return a picture with one class a row, and the same noise down each column."""
        rows = min(self.classes, MOST_ROWS)
        noise = self.fixed_noise[:COLUMNS].repeat(rows, 1)
        labels = torch.arange(rows, device=noise.device).repeat_interleave(COLUMNS)
        return {"samples": tile(super().show(self.inputs_for(noise, labels)), columns=COLUMNS)}

    def evaluate(self, samples: Batches) -> dict[str, float]:
        assert self.judge is not None, "prepare() comes first"
        features = [self.judge.extract_features(images) for images in self.generated()]
        labels = torch.cat([self._in_turn(len(part)) for part in features])
        return {**self.judge.compute_scores(samples, features), **self.judge.label_accuracy(torch.cat(features), labels)}

    def _in_turn(self, count: int) -> Tensor:
        return torch.arange(count, device=self.fixed_noise.device) % self.classes
