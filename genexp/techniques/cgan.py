"""Class-conditional convolutional GAN (Mirza & Osindero 2014)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genexp.data.dataset import DataSpec
from genexp.errors import ConfigError
from genexp.images.grid import make_grid
from genexp.technique import Batch, Batches, PictureLabels, TechniquePart, register_technique
from genexp.techniques._adversarial import BaseConvGAN, ConvGANConfig

IMAGES_PER_CLASS = 10  # images of each class in the preview grid
MAX_CLASSES = 20  # upper limit of classes in the preview grid


@register_technique("cgan")
class ConditionalGAN(BaseConvGAN):
    """Conditional GAN with a projection discriminator (Miyato & Koyama 2018).

    The generator receives the noise and the one-hot class. The last layer of the discriminator has one
    unconditional output and one output per class: score(x, y) = (w + w_y)·features(x).
    """

    Config = ConvGANConfig

    def build_networks(self, spec: DataSpec) -> tuple[nn.Module, nn.Module]:
        """Return generator and discriminator. Raises ConfigError for a data set without classes."""
        spec.get_shape("label")
        self.num_classes = self.condition_size = len(spec.class_names)
        if not self.num_classes:
            raise ConfigError(f"dataset={spec.name}: has no classes. Use another data set, or model=dcgan.")
        self.discriminator_out_channels = 1 + self.num_classes
        return super().build_networks(spec)

    def generate(self, batch: Batch) -> Tensor:
        return self.generator(self.concat_noise_and_labels(self.sample_noise(len(batch["label"])), batch["label"]))

    def score(self, images: Tensor, batch: Batch) -> Tensor:
        outputs = self.discriminator(images)  # (batch, 1 + classes)
        return outputs[:, 0] + outputs[:, 1:].gather(1, batch["label"][:, None]).squeeze(1)

    def concat_noise_and_labels(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return the generator's inputs (count, latent + classes) of noise (count, latent) and labels (count,)."""
        return torch.cat([noise, F.one_hot(labels, self.num_classes).to(noise)], dim=1)

    def generate_from_noise(self, noise: Tensor) -> Tensor:
        """Return the generated images in [0, 1] for noise (count, latent), cycling through the classes."""
        return self.generate_classes(noise, self._cycle_labels(len(noise)))

    def generate_classes(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return the generated images in [0, 1] for noise (count, latent) and classes (count,)."""
        return super().generate_from_noise(self.concat_noise_and_labels(noise, labels))

    def list_parts(self, examples: Batch) -> dict[str, TechniquePart]:
        inputs = {"noise": self.sample_noise(len(examples["label"])), "label": examples["label"]}
        ranges = {"noise": "standard normal", "label": f"0 to {self.num_classes - 1}", "image": "[0, 1]"}
        return {"generator": TechniquePart(self.generate_classes, inputs, "image", ranges)}

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        """Return an image grid with one class per row and the same noise in each column."""
        rows = min(self.num_classes, MAX_CLASSES)
        noise = self.fixed_noise[:IMAGES_PER_CLASS].repeat(rows, 1)
        labels = torch.arange(rows, device=noise.device).repeat_interleave(IMAGES_PER_CLASS)
        return {"samples": make_grid(self.generate_classes(noise, labels), columns=IMAGES_PER_CLASS)}

    def label_pictures(self, class_names: Sequence[str]) -> dict[str, PictureLabels]:
        return {"samples": PictureLabels(rows=class_names[: min(self.num_classes, MAX_CLASSES)])}

    def list_metrics(self) -> Sequence[str]:
        return self.generation_metrics.list_names(has_labels=True)

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        features = self.generation_metrics.generate_features(self.sample)
        labels = torch.cat([self._cycle_labels(len(batch_features)) for batch_features in features])
        return {
            **self.generation_metrics.compute_scores(test_batches, features),
            **self.generation_metrics.label_accuracy(torch.cat(features), labels),
        }

    def _cycle_labels(self, count: int) -> Tensor:
        return torch.arange(count, device=self.fixed_noise.device) % self.num_classes
