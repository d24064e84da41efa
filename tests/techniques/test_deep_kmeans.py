"""Deep k-means: its schedule, its centers, what it leaves of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from genexp.config import bind
from genexp.data.dataset import DataSpec
from genexp.images.scatter import embed_tsne
from genexp.images.transforms import random_affine
from genexp.technique import Batch, Clock
from genexp.techniques.deep_kmeans import DeepKMeans, DeepKMeansConfig, sharpened_assignment_loss, soft_assignment
from tests.support.command import genexp, in_folder, metrics, status
from tests.support.compose import composed

SPEC = DataSpec("blank", {"image": (1, 28, 28), "label": ()}, train_size=60)


def technique(*overrides: str) -> DeepKMeans:
    """Return the technique as the command line would build it."""
    node: Any = OmegaConf.to_container(composed(*(overrides or ("model=deep_kmeans",))).model, resolve=True)
    config = bind(DeepKMeansConfig, {key: node[key] for key in node if key not in ("name", "recipe")}, "model")
    torch.manual_seed(0)
    return DeepKMeans(config, SPEC)


def at_epoch(epoch: int, total: int = 300) -> Clock:
    """Return the first step of an epoch, of 10 steps each."""
    return Clock((epoch - 1) * 10 + 1, total * 10, 10)


def split() -> list[Batch]:
    """Return a split of three kinds of images."""
    torch.manual_seed(1)
    kinds = torch.arange(60) % 3
    stripes = torch.stack([torch.eye(28), torch.zeros(28, 28), torch.ones(28, 28)])
    images = (0.8 * stripes[kinds] + 0.2 * torch.rand(60, 28, 28)).unsqueeze(1)
    return [{"image": image, "label": kind} for image, kind in zip(images.split(25), kinds.split(25), strict=True)]


@pytest.mark.parametrize(
    ("epoch", "alpha"),
    [(1, 1e-3 / 150), (50, 1e-3 / 150), (51, 1e-3 / 150), (125, 1e-3 / 2), (199, 1e-3 * 149 / 150), (250, 1e-3)],
)
def test_alpha_rises_as_the_source_says(epoch: int, alpha: float) -> None:
    assert technique("experiment=deep_kmeans_reference").scheduled_alpha(at_epoch(epoch)) == pytest.approx(alpha)


def test_without_a_ramp_alpha_is_there_once_pretraining_is_over() -> None:
    deep = technique("model=deep_kmeans", "model.pretrain=0.5", "model.alpha=0.7")
    assert [deep.scheduled_alpha(at_epoch(epoch, total=10)) for epoch in (1, 5, 6, 10)] == [0, 0, 0.7, 0.7]


def test_centers_are_placed_once_when_pretraining_is_over() -> None:
    deep = technique("model=deep_kmeans", "model.pretrain=0.5")
    placed = [step for step in range(1, 101) if deep.is_first_step_after_pretraining(Clock(step, 100, 10))]
    assert placed == [51]
    never = technique("model=deep_kmeans", "model.pretrain=0")
    assert not any(never.is_first_step_after_pretraining(Clock(step, 100, 10)) for step in range(1, 101))


def test_placed_centers_lie_among_the_latents() -> None:
    deep = technique("model=deep_kmeans", "model.clusters=3")
    samples = split()
    with torch.no_grad():
        deep.fit_centers(samples, Clock(1, 2, 1))
        codes = torch.cat([deep.encode_in_eval_mode(batch["image"]) for batch in samples])
    means = torch.stack([codes[torch.arange(60) % 3 == kind].mean(0) for kind in range(3)])
    torch.testing.assert_close(torch.cdist(deep.centers, means).amin(1), torch.zeros(3), rtol=0, atol=0.5)


def test_the_assignment_is_no_part_of_the_gradient() -> None:
    """The gradient of the centers is that of the mean squared distance to fixed latents."""
    deep = technique("experiment=deep_kmeans_reference")
    batch = split()[0]
    clock = at_epoch(300)
    loss, extra = deep.loss(batch, clock)
    loss.backward()
    with torch.no_grad():
        codes = deep.encode(batch)
        clusters = deep.assign(batch)
        expected = torch.zeros_like(deep.centers)
        expected.index_add_(0, clusters, (deep.centers[clusters] - codes) * 2 / codes.numel())
    assert deep.centers.grad is not None
    torch.testing.assert_close(deep.centers.grad, 1e-3 * expected)
    assert float(extra["centers_used"]) == len(clusters.unique())


def test_memberships_are_shares_of_one_and_largest_at_the_nearest_center() -> None:
    codes, centers = torch.randn(20, 4), torch.randn(5, 4)
    belongs = soft_assignment(codes, centers)
    torch.testing.assert_close(belongs.sum(1), torch.ones(20))
    assert torch.equal(belongs.argmax(1), torch.cdist(codes, centers).argmin(1))


def test_a_sharpened_pull_leads_to_the_nearer_center_and_spares_the_smaller_cluster() -> None:
    centers = torch.tensor([[0.0], [4.0]])
    code = torch.tensor([[1.0]], requires_grad=True)
    sharpened_assignment_loss(code, centers, code.detach(), torch.tensor([0.5, 0.5])).backward()
    assert code.grad is not None
    assert code.grad.item() > 0, "descent does not lead to the nearer center"
    middle = torch.tensor([[2.0]], requires_grad=True)
    sharpened_assignment_loss(middle, centers, middle.detach(), torch.tensor([0.9, 0.1])).backward()
    assert middle.grad is not None
    assert middle.grad.item() < 0, "descent does not lead to the smaller cluster"


def test_evaluation_agrees_with_settled_latents() -> None:
    deep = technique("model=deep_kmeans").eval()
    images = split()[0]["image"]
    torch.testing.assert_close(deep.encode_in_eval_mode(images), deep.encode({"image": images}))


def test_scores_do_not_depend_on_the_batches() -> None:
    deep = technique("model=deep_kmeans").eval()
    samples = split()
    whole: list[Batch] = [{name: torch.cat([batch[name] for batch in samples]) for name in samples[0]}]
    with torch.no_grad():
        parts, together = deep.evaluate(samples), deep.evaluate(whole)
        without = deep.evaluate([{"image": batch["image"]} for batch in samples])
    assert parts == pytest.approx(together, rel=1e-4)
    assert set(parts) == {"loss", "mse", "acc", "nmi", "ari"}
    assert set(without) == {"loss", "mse"}


def test_idle_centers_are_said() -> None:
    deep = technique("model=deep_kmeans")
    assert deep.diagnose({"centers_used": 1.2, "loss": 1.0}) is not None
    assert deep.diagnose({"centers_used": 9.0}) is None
    assert deep.diagnose({"loss": 1.0}) is None


def test_a_run_leaves_its_pictures_and_scores(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tiny = ("dataset.limit=80", "trainer.batch_size=20", "trainer.epochs=4", "device=cpu", "device.threads=1")
    ended = genexp("model=deep_kmeans", *tiny, "model.pretrain=0.5", in_folder(folder))
    assert ended.code == 0, ended.err
    for picture in ("figures/tsne.png", "reconstructions.gif", "centers.gif"):
        assert (folder / picture).is_file(), picture
    assert {"acc", "nmi", "ari", "mse", "loss"} <= set(status(folder)["test"])
    train = [line for line in metrics(folder) if line["split"] == "train"]
    assert ["distance" in line for line in train] == [False] * 8 + [True] * 8


def test_too_many_clusters_are_refused(tmp_path: Path) -> None:
    ended = genexp("model=deep_kmeans", "dataset.limit=40", "model.clusters=50", in_folder(tmp_path / "run"))
    assert ended.code == 1
    assert "model.clusters=50 exceeds the 40 images" in ended.err


@pytest.mark.parametrize(
    "override", ["model.alpha_ramp=[5,1]", "model.pretrain=1", "model.zoom=2", "model.alpha=-1"]
)
def test_errors_name_the_key(override: str, tmp_path: Path) -> None:
    ended = genexp("model=deep_kmeans", override, in_folder(tmp_path / "run"))
    assert ended.code == 1
    assert override.split("=")[0] in ended.err


def test_codes_that_do_not_differ_can_be_mapped() -> None:
    assert embed_tsne(torch.ones(12, 4)).isfinite().all()


def blot(height: int, width: int) -> Tensor:
    """Return one image with a bright spot right of the middle."""
    image = torch.zeros(1, 1, height, width)
    image[..., height // 2 - 1 : height // 2 + 1, -6:-4] = 1
    return image


def test_no_jitter_is_no_change() -> None:
    images = torch.rand(5, 3, 12, 16)
    torch.testing.assert_close(random_affine(images, degrees=0, shift_pixels=0, zoom=0), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (24, 48)])
def test_jitter_turns_without_distortion(height: int, width: int) -> None:
    """Turned about the middle, a spot keeps its distance from it, whatever the sides of the image."""
    torch.manual_seed(0)
    turned = random_affine(blot(height, width).expand(40, -1, -1, -1), degrees=25, shift_pixels=0, zoom=0)
    rows = torch.arange(height) - (height - 1) / 2
    columns = torch.arange(width) - (width - 1) / 2
    mass = turned.sum((1, 2, 3))
    down = (turned.sum((1, 3)) * rows).sum(1) / mass
    right = (turned.sum((1, 2)) * columns).sum(1) / mass
    torch.testing.assert_close(
        (down.square() + right.square()).sqrt(), torch.full((40,), width / 2 - 5.0), rtol=0, atol=0.3
    )
    assert down.abs().max() > 2


def test_jitter_shifts_by_pixels() -> None:
    torch.manual_seed(0)
    shifted = random_affine(blot(28, 28).expand(200, -1, -1, -1), degrees=0, shift_pixels=3, zoom=0)
    places = (shifted.sum((1, 2)) * torch.arange(28)).sum(1) / shifted.sum((1, 2, 3))
    assert 2.5 < float((places - 22.5).abs().max()) <= 3.01
