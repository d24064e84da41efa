"""Own code of genexp against the library that could replace it, on the same work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.clock import read_seconds
from benchmark.paired_rounds import PairedComparison, run_paired_rounds
from benchmark.startup import read_command_seconds
from genexp.metrics.frechet import NEIGHBORS, frechet_distance, neighborhood_scores
from genexp.metrics.reconstruction import ssim
from genexp.networks.dropout import dropout

MIN_SECONDS = 0.3  # a call is repeated for at least this long
CREATE_PARAMETER = "import torch; weight = torch.nn.Parameter(torch.ones(9)); weight.grad = torch.ones(9); "
Task = tuple[Callable[[], Any], Mapping[str, Callable[[], Any]]]  # genexp's function, rival → its function
# Work of a new process → (code of genexp, code with the library).
START_UP_CODE = {
    "import torch, one step of Adam": (
        f"{CREATE_PARAMETER}from genexp.training.optimizers import OPTIMIZERS; "
        "OPTIMIZERS['adam'].optimizer_class([weight]).step()",
        f"{CREATE_PARAMETER}torch.optim.Adam([weight]).step()",
    ),
    "import torch, one grid": (
        "import torch; from genexp.images.grid import make_grid; make_grid(torch.rand(64, 1, 28, 28), 8)",
        "import torch; from genexp.images.vision import torchvision; "
        "torchvision.utils.make_grid(torch.rand(64, 1, 28, 28), 8)",
    ),
    "import torch, clustering scores": (
        "import torch; from genexp.metrics.clustering import clustering_scores; clustering_scores([0, 1], [1, 1])",
        "import torch; from genexp.metrics.clustering import clustering_accuracy; clustering_accuracy([0], [1]); "
        "from sklearn.metrics import adjusted_rand_score as ari, normalized_mutual_info_score as nmi; "
        "ari([0, 1], [1, 1]), nmi([0, 1], [1, 1])",
    ),
    "genexp --help": (
        "import sys; from genexp.train import main; sys.argv = ['genexp', '--help']; main()",
        "import sys; from genexp import train; train.build_help_page = lambda arguments: None; "
        "sys.argv = ['genexp', '--help']; train.main()",
    ),
}
START_UP_RIVALS = ("torch.optim", "torchvision", "scikit-learn", "Hydra's help")


def run(rounds: int) -> list[PairedComparison]:
    """Measure seconds per call. Raises CalledProcessError if a process fails."""
    comparisons = []
    for task, (ours, rivals) in build_tasks().items():
        contenders = {name: partial(_time_call, function) for name, function in rivals.items()}
        comparisons += run_paired_rounds(task, partial(_time_call, ours), contenders, rounds=rounds, unit="s")
    for (task, (ours_code, rival_code)), rival in zip(START_UP_CODE.items(), START_UP_RIVALS, strict=True):
        contenders = {rival: partial(_time_code, rival_code)}
        comparisons += run_paired_rounds(task, partial(_time_code, ours_code), contenders, rounds=rounds, unit="s")
    return comparisons


def build_tasks(images: int = 500, samples: int = 5000) -> dict[str, Task]:
    """Return tasks by their description. The functions of a task have equal results, except for dropout's."""
    from genexp.images.vision import torchvision  # noqa: F401, I001 - before torchmetrics
    from torchmetrics.functional.image import structural_similarity_index_measure as torchmetrics_ssim

    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, images, 1, 28, 28, generator=generator)
    real, fake = torch.randn(2, samples, 64, generator=generator).double()
    fake = fake * 1.1 + 0.1
    values = torch.rand(100, 1024, generator=generator)
    return {
        f"SSIM of {images:,} images of 28×28": (
            partial(ssim, first, second),
            {"torchmetrics": partial(torchmetrics_ssim, first, second, data_range=1.0, reduction="none")},
        ),
        f"precision, recall, density, coverage of {samples:,} samples": (
            partial(neighborhood_scores, real, fake),
            {"scikit-learn": partial(compute_scores_with_sklearn, real, fake)},
        ),
        f"Fréchet distance of {samples:,} samples": (
            partial(frechet_distance, real, fake),
            {"scipy.linalg.sqrtm": partial(compute_frechet_with_scipy, real, fake)},
        ),
        "dropout of 100×1024 values": (
            partial(dropout, values, 0.3, True),
            {"torch": partial(F.dropout, values, 0.3, True)},
        ),
    }


def compute_scores_with_sklearn(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Return the scores as the reference code of Naeem et al. 2020 computes them, from whole distance matrices.

    `real` and `fake` are features (samples, features).
    """
    from sklearn.metrics import pairwise_distances

    def find_radii(samples: Tensor) -> np.ndarray:
        radii: np.ndarray = np.partition(pairwise_distances(samples.numpy()), NEIGHBORS, axis=1)[:, NEIGHBORS]
        return radii

    distances = pairwise_distances(real.numpy(), fake.numpy())
    in_real_ball = distances <= find_radii(real)[:, None]
    return {
        "precision": float(in_real_ball.any(0).mean()),
        "recall": float((distances <= find_radii(fake)).any(1).mean()),
        "density": float(in_real_ball.sum(0).mean() / NEIGHBORS),
        "coverage": float(in_real_ball.any(1).mean()),
    }


def compute_frechet_with_scipy(real: Tensor, fake: Tensor) -> float:
    """Return the distance as the reference code of Heusel et al. 2017 computes it, by a matrix square root.

    `real` and `fake` are features (samples, features).
    """
    from scipy.linalg import sqrtm

    covariances = [np.cov(samples.numpy(), rowvar=False) for samples in (real, fake)]
    root = sqrtm(covariances[0] @ covariances[1])
    shift = (real.mean(0) - fake.mean(0)).square().sum()
    return float(shift + covariances[0].trace() + covariances[1].trace() - 2 * root.real.trace())


def _time_call(function: Callable[[], Any]) -> float:
    """Return the seconds of one call, as the mean over calls of at least MIN_SECONDS together."""
    count, started_at = 0, read_seconds()
    while (seconds := read_seconds() - started_at) < MIN_SECONDS:
        function()
        count += 1
    return seconds / count


def _time_code(code: str) -> float:
    started_at = read_command_seconds()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return read_command_seconds() - started_at
