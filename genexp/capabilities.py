"""What a learned technique can do beside being scored. A technique inherits what it can; tools ask `isinstance`.

All are called in evaluation mode, without gradients, on the technique's device. Images are float in [0, 1].
Randomness comes from torch's global generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from genexp.technique import Batch


class CanSample(ABC):
    """Makes new images out of noise."""

    @abstractmethod
    def sample(self, count: int) -> Tensor:
        """Return new images (count, channels, height, width); of classes in turn, where it knows any."""


class CanReconstruct(ABC):
    """Gives back images through a narrow latent."""

    @abstractmethod
    def reconstruct(self, images: Tensor) -> Tensor:
        """Return what comes back of `images` (batch, channels, height, width), in their shape."""

    def corrupt(self, images: Tensor) -> Tensor:
        """Return `images` as the technique is meant to see them: noisy, where it is there to remove noise."""
        return images


class CanInterpolate(ABC):
    """Has a latent space in which there is a way from one image to another."""

    @abstractmethod
    def interpolate(self, examples: Batch, frames: int) -> Tensor:
        """Return images (frames, paths, channels, height, width): along each path one image turns into another.

        There is one path for each of `examples`, held-out samples. A technique without a way from images to
        codes takes only their number.
        """


class CanTraverse(ABC):
    """Has latent units that can be moved one by one."""

    @abstractmethod
    def traverse(self, examples: Batch, frames: int) -> Tensor:
        """Return images (frames, units, channels, height, width): along each path one unit of a code moves alone.

        The code is that of the first of `examples`, held-out samples; the units are those that say most of them.
        """


class CanCluster(ABC):
    """Assigns samples to clusters."""

    @abstractmethod
    def assign(self, batch: Batch) -> Tensor:
        """Return the cluster of each sample: int64 (batch,)."""


class CanStylize(ABC):
    """Has learned one image: a content in a style."""

    @abstractmethod
    def stylize(self) -> Tensor:
        """Return that image, (1, 3, height, width)."""


@dataclass(frozen=True)
class Translation:
    """A way from one kind of image to another."""

    name: str  # of the files that come of it: "translated", "a_to_b"
    source_stream: str  # the stream whose images go in
    target_stream: str  # the stream of what should come out, which the test split may have
    translate: Callable[[Tensor], Tensor]  # (batch, c, h, w) → (batch, c, h, w)


class CanTranslate(ABC):
    """Turns images of one kind into images of another."""

    @abstractmethod
    def translations(self) -> Sequence[Translation]:
        """Return all ways the technique knows."""


class CanEstimateLikelihood(ABC):
    """Has a likelihood that can be estimated."""

    @abstractmethod
    def log_likelihood(self, images: Tensor, samples: int) -> Tensor:
        """Return log p in nats, estimated from so many samples, of binary images (batch, c, h, w): (batch,)."""
