"""Optional interfaces of techniques: sampling, reconstruction, interpolation, traversal, clustering and others.

A technique inherits the interfaces it implements; callers check with `isinstance`. All methods are called in
evaluation mode, without gradients, on the technique's device. Images are float in [0, 1]. Random numbers come
from torch's global generators.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from genexp.technique import Batch


class CanSample(ABC):
    """Interface of techniques that generate images from noise."""

    @abstractmethod
    def sample(self, count: int) -> Tensor:
        """Return new images (count, channels, height, width). Conditional techniques cycle through the classes."""


class CanReconstruct(ABC):
    """Interface of techniques that reconstruct images from a latent code."""

    @abstractmethod
    def reconstruct(self, images: Tensor) -> Tensor:
        """Return the reconstructions of `images` (batch, channels, height, width), in the same shape."""

    def corrupt(self, images: Tensor) -> Tensor:
        """Return the input of the technique for `images` (batch, channels, height, width), in the same shape.

        A denoising technique returns noisy images. The default is `images`.
        """
        return images


class CanInterpolate(ABC):
    """Interface of techniques with a latent space in which images can be interpolated."""

    @abstractmethod
    def interpolate(self, examples: Batch, num_frames: int) -> Tensor:
        """Return images (frames, paths, channels, height, width): each path leads from one image to another.

        There is one path per sample of `examples`. A technique without an encoder uses only their number.
        """


class CanTraverse(ABC):
    """Interface of techniques whose latent units can be varied one at a time."""

    @abstractmethod
    def traverse(self, examples: Batch, num_frames: int) -> Tensor:
        """Return images (frames, units, channels, height, width): each path varies one latent unit alone.

        The other units keep the values of the first sample of `examples`. The units are the most informative
        ones for `examples`.
        """


class CanCluster(ABC):
    """Interface of techniques that assign samples to clusters."""

    @abstractmethod
    def assign(self, batch: Batch) -> Tensor:
        """Return the cluster index of each sample: int64 (batch,)."""


class CanStylize(ABC):
    """Interface of techniques that optimize one image toward the content of one image and the style of another."""

    @abstractmethod
    def stylize(self) -> Tensor:
        """Return the stylized image: (1, 3, height, width)."""


@dataclass(frozen=True)
class Translation:
    """Mapping from one image domain to another."""

    name: str  # names the output files: "translated", "a_to_b"
    source_stream: str  # stream of the inputs
    target_stream: str  # stream of the expected outputs; not every test split has it
    translate: Callable[[Tensor], Tensor]  # (batch, channels, height, width) → translations in the same shape


class CanTranslate(ABC):
    """Interface of techniques that translate images between domains."""

    @abstractmethod
    def translations(self) -> Sequence[Translation]:
        """Return all translations of the technique."""


class CanEstimateLikelihood(ABC):
    """Interface of techniques with a likelihood that can be estimated."""

    evaluated_pixels: str  # key of BINARIZATIONS: preprocessing of the pixels whose likelihood is estimated

    @abstractmethod
    def log_likelihood(self, images: Tensor, num_samples: int) -> Tensor:
        """Return log p(image) in nats: (batch, channels, height, width) → (batch,).

        `images` are preprocessed as `evaluated_pixels` says: bits, or gray values in [0, 1]. The estimate uses
        `num_samples` latent samples per image.
        """
