"""Distances of two sets of images: Fréchet, neighborhood scores (Naeem et al. 2020), sliced Wasserstein.

The Fréchet distance is that of Heusel et al. (2017), the sliced Wasserstein distance that of Rabin et al. (2012).

Inputs are features (samples, features) of real and generated images, from a small classifier whose version is part
of the name of each score. FID, the Fréchet distance of Inception features, is returned by `inception_scores` only.
All scores depend on the numbers of samples, so only scores from equal numbers are comparable. Neighborhood scores
of few samples are mostly noise: `generation_scores` omits them below MIN_NEIGHBORHOOD_SAMPLES.

Neighborhood scores take 0.24 times as long as the reference code with scikit-learn ("Libraries" in
scripts/README.md). The Fréchet distance takes as long as with scipy's matrix square root, which is complex or
fails for singular covariances.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from genexp.errors import ConfigError
from genexp.networks.inception import prepare_torch_fidelity_import

NEIGHBORHOOD_SCORES = ("precision", "recall", "density", "coverage")
MIN_NEIGHBORHOOD_SAMPLES = 1000  # real and generated samples each, for the neighborhood scores
NEIGHBORS = 5  # as in Naeem et al. 2020, also for precision and recall, where Kynkäänniemi et al. 2019 take 3
NUM_PROJECTIONS = 256  # random directions of the sliced Wasserstein distance
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # as in torch-fidelity
BLOCK_ROWS = 64  # rows of the distance matrix at a time: 5 MB for 10,000 columns, which fit in a cache


def list_generation_scores(num_real: int, num_fake: int) -> tuple[str, ...]:
    """Return the names of the scores, without version, of `num_real` real and `num_fake` generated samples."""
    has_enough_samples = min(num_real, num_fake) >= MIN_NEIGHBORHOOD_SAMPLES
    return ("frechet", *NEIGHBORHOOD_SCORES) if has_enough_samples else ("frechet",)


def generation_scores(
    real: Tensor, fake: Tensor, version: str, *, real_radii: Tensor | None = None
) -> dict[str, float]:
    """Return the scores that `list_generation_scores` names, as frechet_V, precision_V, recall_V and so on.

    V is the extractor's `version`. `real` and `fake` are features, (samples, features) each. `real_radii` is
    `squared_radii(real)`, if known.
    Raises ConfigError for fewer than 6 samples.
    """
    if min(len(real), len(fake)) <= NEIGHBORS:
        raise ConfigError(
            f"generation metrics: too few images ({len(real)} real, {len(fake)} generated). "
            f"Use at least {NEIGHBORS + 1} of both."
        )
    real, fake = real.cpu().double(), fake.cpu().double()
    scores = {"frechet": frechet_distance(real, fake)}
    if "precision" in list_generation_scores(len(real), len(fake)):
        scores |= neighborhood_scores(real, fake, real_radii=real_radii)
    return {f"{name}_{version}": score for name, score in scores.items()}


def inception_scores(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Return fid_inception and kid_inception (Bińkowski et al. 2018) of features from Inception (samples, 2048).

    torch-fidelity computes both. KID is the mean over random subsets. With enough samples for more than one
    subset, kid_inception_std is the standard deviation over the subsets. Raises ConfigError for fewer than 2
    samples, and for features that are not finite.
    """
    if min(len(real), len(fake)) < 2:
        raise ConfigError("--inception: requires at least 2 test images. Use a larger dataset.limit.")
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise ConfigError("--inception: features are not finite. Check the weights and the generated images.")
    prepare_torch_fidelity_import()
    from torch_fidelity import metric_fid as fid
    from torch_fidelity import metric_kid as kid

    statistics = [fid.fid_features_to_statistics(features) for features in (real, fake)]
    distance = fid.fid_statistics_to_metric(*statistics, verbose=False)[fid.KEY_METRIC_FID]
    subsets = plan_kid_subsets(min(len(real), len(fake)))
    found = kid.kid_features_to_metric(real, fake, **subsets, verbose=False)
    scores = {"fid_inception": distance, "kid_inception": found[kid.KEY_METRIC_KID_MEAN]}
    return (
        scores if subsets["kid_subsets"] == 1 else {**scores, "kid_inception_std": found[kid.KEY_METRIC_KID_STD]}
    )


def plan_kid_subsets(count: int) -> dict[str, int]:
    """Return the number and the size of the subsets of `count` samples over which KID is averaged."""
    # Subsets with all samples are all the same: one is enough.
    return {
        "kid_subsets": KID_SUBSETS if count > KID_SUBSET_SIZE else 1,
        "kid_subset_size": min(count, KID_SUBSET_SIZE),
    }


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance of Gaussians fitted to both (Heusel et al. 2017).

    It is |m - m'|² + tr(C + C' - 2 (C C')^½), for means m and covariances C. The trace of (C C')^½ equals the
    trace of the symmetric matrix (C^½ C' C^½)^½, whose eigenvalues are real even for singular covariances. `real`
    and `fake` are (samples, features).
    """
    (mean, covariance), (other_mean, other_covariance) = _fit_gaussian(real), _fit_gaussian(fake)
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    root = eigenvectors * eigenvalues.clamp_min(0).sqrt() @ eigenvectors.T
    product_eigenvalues = torch.linalg.eigvalsh(root @ other_covariance @ root).clamp_min(0)
    shift = (mean - other_mean).square().sum()
    distance = shift + covariance.trace() + other_covariance.trace() - 2 * product_eigenvalues.sqrt().sum()
    return float(distance.clamp_min(0))  # rounding leaves a tiny negative number for equal sets


def neighborhood_scores(
    real: Tensor, fake: Tensor, num_neighbors: int = NEIGHBORS, *, real_radii: Tensor | None = None
) -> dict[str, float]:
    """Return "precision", "recall" (Kynkäänniemi et al. 2019), "density" and "coverage" (Naeem et al. 2020).

    Each sample has a ball. Its radius is the distance to the `num_neighbors`-th nearest neighbor of the same set.
    - precision: fraction of generated samples in at least one ball of a real sample
    - recall: fraction of real samples in at least one ball of a generated sample
    - density: mean number of real balls that contain a generated sample, over `num_neighbors`; may exceed 1
    - coverage: fraction of real balls that contain at least one generated sample

    `real` and `fake` are features (samples, features) of real and generated samples. `real_radii` is
    `squared_radii(real, num_neighbors)`, if known: it is the same for all generated samples.
    """
    if real_radii is None:
        real_radii = squared_radii(real, num_neighbors)
    fake_radii = squared_radii(fake, num_neighbors)
    mean = real.double().mean(0)  # near the origin, squared distances lose fewer digits to rounding
    real, fake = real.double() - mean, fake.double() - mean
    balls_around_fake = torch.zeros(len(fake), dtype=torch.long)
    recalled_count = covered_count = 0
    for rows, distances in _iter_distance_blocks(real, fake):
        in_real_ball = distances <= real_radii[rows, None]  # (block, fakes)
        balls_around_fake += in_real_ball.sum(0)
        covered_count += int(in_real_ball.any(1).sum())
        recalled_count += int((distances <= fake_radii).any(1).sum())
    return {
        "precision": float((balls_around_fake > 0).double().mean()),
        "recall": recalled_count / len(real),
        "density": float(balls_around_fake.double().mean()) / num_neighbors,
        "coverage": covered_count / len(real),
    }


def _fit_gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.double()  # (samples, features)
    return features.mean(0), torch.cov(features.T)


def squared_radii(samples: Tensor, num_neighbors: int = NEIGHBORS) -> Tensor:
    """Return the squared distance of each sample to its `num_neighbors`-th nearest neighbor: float64 (samples,).

    `samples` is (samples, features).
    """
    samples = samples.double()
    samples = samples - samples.mean(0)
    radii = [
        # One more than `num_neighbors`, since the nearest sample is the sample itself.
        distances.topk(num_neighbors + 1, largest=False).values[:, -1]
        for _, distances in _iter_distance_blocks(samples, samples)
    ]
    return torch.cat(radii)


def _iter_distance_blocks(samples: Tensor, others: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of `samples`, and their squared distances to `others`: (block, others).

    The next block overwrites the memory of this one. One matrix product gives |x|² - 2 x·y + |y|²: its rows
    are (x, |x|², 1), its columns (-2 y, 1, |y|²).
    """
    rows = F.pad(torch.column_stack([samples, samples.square().sum(1)]), (0, 1), value=1.0)
    columns = torch.column_stack([F.pad(-2 * others, (0, 1), value=1.0), others.square().sum(1)]).T.contiguous()
    memory = samples.new_empty(min(BLOCK_ROWS, len(samples)), len(others))
    for start in range(0, len(samples), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        distances = torch.mm(block, columns, out=memory[: len(block)])
        yield slice(start, start + BLOCK_ROWS), distances.clamp_min_(0)


def sliced_wasserstein(first: Tensor, second: Tensor, num_projections: int = NUM_PROJECTIONS) -> Tensor:
    """Return the sliced Wasserstein-1 distance of two equally large sets of images (samples, ...): scalar.

    Both sets are projected onto random directions. Along each, the distance is the mean absolute difference of the
    sorted values (Rabin et al. 2012). The result is 0 for equal sets in any order. The directions come from
    torch's global generator.
    """
    assert len(first) == len(second)
    features = first[0].numel()
    directions = torch.randn(features, num_projections, device=first.device)
    directions = directions / directions.norm(dim=0)
    projected = (images.float().flatten(1) @ directions for images in (first, second))  # (samples, projections)
    first_sorted, second_sorted = (values.sort(dim=0).values for values in projected)
    return (first_sorted - second_sorted).abs().mean()
