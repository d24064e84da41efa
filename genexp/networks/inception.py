"""Inception-v3 of the FID (Heusel et al. 2017), from the package torch-fidelity (extra "inception")."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from genexp.errors import ConfigError
from genexp.networks.weight_files import download_weights, load_weight_file

WEIGHTS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
PUBLISHED_CHECKSUM = "6726825d"  # start of the SHA-256 of that file
FEATURE_LAYER = "2048"  # the last pooling layer, which FID and KID use, by its name in torch-fidelity
BATCH_SIZE = 50  # images of 299×299 pixels at once
REMEDY = f"Download {WEIGHTS_URL}, and pass it with --inception-weights FILE."


def prepare_torch_fidelity_import() -> None:
    """Prepare `import torch_fidelity`, which imports torchvision. Raises ConfigError if the package is absent."""
    if importlib.util.find_spec("torch_fidelity") is None:
        raise ConfigError("--inception: requires torch-fidelity. Run `pip install 'genexp[inception]'`.")
    from genexp.images.vision import torchvision  # noqa: F401 - declares operators that torchvision may lack


@dataclass(frozen=True)
class Inception:
    """Inception network in evaluation mode, whose features are those of the FID."""

    module: (
        nn.Module
    )  # uint8 images (batch, 3, height, width) → a tuple whose first entry is features (batch, 2048)
    weights_checksum: str  # first 8 digits of the SHA-256 of the weight file

    @property
    def has_published_weights(self) -> bool:
        """Whether the weights are the published ones of the FID."""
        return self.weights_checksum == PUBLISHED_CHECKSUM

    def extract_features(self, images: Tensor) -> Tensor:
        """Return features on the CPU: (samples, 1 or 3 channels, height, width) in [0, 1] → (samples, 2048).

        Gray images are repeated to three channels. The network moves to the device of the images. Raises
        ConfigError for another number of channels.
        """
        if images.shape[1] not in (1, 3):
            raise ConfigError(
                f"--inception: takes gray and RGB images, not {images.shape[1]} channels. Remove --inception."
            )
        pixels = (255 * images.float()).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1)
        self.module.to(images.device)
        with torch.no_grad():
            return torch.cat([self.module(part)[0].cpu() for part in pixels.split(BATCH_SIZE)])


def load_inception(weights_path: Path | None = None) -> Inception:
    """Return the network with the weights in a file, by default the published ones, which are downloaded once.

    Loading executes no code of the file. Raises ConfigError.
    """
    prepare_torch_fidelity_import()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    setting = "--inception" if weights_path is None else f"--inception-weights {weights_path}"
    path = download_weights(WEIGHTS_URL, setting, REMEDY) if weights_path is None else weights_path
    weights = load_weight_file(path, setting, REMEDY)
    # torch-fidelity loads a file with torch.load(weights_only=False). It gets a copy, which has only tensors.
    copy = io.BytesIO()
    torch.save(dict(weights), copy)
    copy.seek(0)
    try:
        module = FeatureExtractorInceptionV3("inception", [FEATURE_LAYER], feature_extractor_weights_path=copy)
    except Exception as error:  # wrong names or values raise errors of many types
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        raise ConfigError(
            f"{setting}: not the weights of this network ({lines[min(1, len(lines) - 1)][:100]}). {REMEDY}"
        ) from None
    with path.open("rb") as file:
        return Inception(module, hashlib.file_digest(file, "sha256").hexdigest()[:8])
