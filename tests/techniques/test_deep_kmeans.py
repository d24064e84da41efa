"""Deep k-means: schedule, centers, losses and runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from genexp.config import bind
from genexp.data.dataset import DataSpec
from genexp.errors import ConfigError
from genexp.metrics.clustering import clustering_scores
from genexp.technique import Batch, Clock
from genexp.techniques._neighbor_classifier import NeighborClassifier, find_neighbors, neighbor_loss, propagate
from genexp.techniques.deep_kmeans import (
    DeepKMeans,
    DeepKMeansConfig,
    contrastive_loss,
    sharpened_assignment_loss,
    soft_assignment,
)
from tests.support.command import format_run_dir_override, load_status, read_metrics_log, run_genexp
from tests.support.compose import compose_config

SPEC = DataSpec("blank", {"image": (1, 28, 28), "label": ()}, train_size=60)


def make_deep_kmeans(*overrides: str) -> DeepKMeans:
    """Return the technique that the command line builds."""
    node: Any = OmegaConf.to_container(compose_config(*(overrides or ("model=deep_kmeans",))).model, resolve=True)
    config = bind(DeepKMeansConfig, {key: node[key] for key in node if key not in ("name", "recipe")}, "model")
    torch.manual_seed(0)
    return DeepKMeans(config, SPEC)


def make_clock(epoch: int, total: int = 300) -> Clock:
    """Return the first step of an epoch, of 10 steps each."""
    return Clock((epoch - 1) * 10 + 1, total * 10, 10)


def make_split() -> list[Batch]:
    """Return a split of three kinds of images."""
    torch.manual_seed(1)
    labels = torch.arange(60) % 3
    stripes = torch.stack([torch.eye(28), torch.zeros(28, 28), torch.ones(28, 28)])
    images = (0.8 * stripes[labels] + 0.2 * torch.rand(60, 28, 28)).unsqueeze(1)
    return [
        {"image": image, "label": kind} for image, kind in zip(images.split(25), labels.split(25), strict=True)
    ]


@pytest.mark.parametrize(
    ("epoch", "alpha"),
    [(1, 1e-3 / 150), (50, 1e-3 / 150), (51, 1e-3 / 150), (125, 1e-3 / 2), (199, 1e-3 * 149 / 150), (250, 1e-3)],
)
def test_alpha_ramp_matches_the_source(epoch: int, alpha: float) -> None:
    assert make_deep_kmeans("experiment=deep_kmeans_reference").scheduled_alpha(
        make_clock(epoch)
    ) == pytest.approx(alpha)


def test_alpha_without_a_ramp_starts_after_pretraining() -> None:
    technique = make_deep_kmeans("model=deep_kmeans", "model.pretrain=0.5", "model.alpha=0.7")
    assert [technique.scheduled_alpha(make_clock(epoch, total=10)) for epoch in (1, 5, 6, 10)] == [0, 0, 0.7, 0.7]


@pytest.mark.parametrize(
    ("override", "fit_steps"),
    [
        ("model.fits=1", [51]),
        ("model.fits=2", [51, 81]),
        ("model.fits=100", [51, 61, 71, 81, 91]),
        ("model.pull=hard", [51]),
    ],
)
def test_centers_are_fitted_at_starts_of_epochs_after_pretraining(override: str, fit_steps: list[int]) -> None:
    technique = make_deep_kmeans("model=deep_kmeans", "model.pretrain=0.5", override)
    assert [step for step in range(1, 101) if technique.is_fit_step(Clock(step, 100, 10))] == fit_steps


def test_centers_are_fitted_even_in_a_short_run() -> None:
    technique = make_deep_kmeans("model=deep_kmeans", "model.pretrain=0.1")
    assert technique.count_pretraining_steps(Clock(1, 20, 10)) == 10, "the classifier must be fitted"
    never = make_deep_kmeans("model=deep_kmeans", "model.pull=sharpened", "model.pretrain=0")
    assert not any(never.is_fit_step(Clock(step, 100, 10)) for step in range(1, 101))


@pytest.mark.parametrize("pull", ["sharpened", "neighbors"])
def test_fitted_centers_are_close_to_the_cluster_means(pull: str) -> None:
    technique = make_deep_kmeans("model=deep_kmeans", "model.clusters=3", f"model.pull={pull}")
    samples = make_split()
    with torch.no_grad():
        technique.fit_centers(samples, Clock(1, 2, 1))
        codes = torch.cat([technique.encode_in_eval_mode(batch["image"]) for batch in samples])
    means = torch.stack([codes[torch.arange(60) % 3 == kind].mean(0) for kind in range(3)])
    torch.testing.assert_close(torch.cdist(technique.centers, means).amin(1), torch.zeros(3), rtol=0, atol=0.5)


def test_assignment_has_no_gradient() -> None:
    """The gradient of the centers equals that of the mean squared distance to fixed codes."""
    technique = make_deep_kmeans("experiment=deep_kmeans_reference")
    batch = make_split()[0]
    clock = make_clock(300)
    loss, extra = technique.loss(batch, clock)
    loss.backward()
    with torch.no_grad():
        codes = technique.encode(batch)
        clusters = technique.assign(batch)
        expected = torch.zeros_like(technique.centers)
        expected.index_add_(0, clusters, (technique.centers[clusters] - codes) * 2 / codes.numel())
    assert technique.centers.grad is not None
    torch.testing.assert_close(technique.centers.grad, 1e-3 * expected)
    assert float(extra["centers_used"]) == len(clusters.unique())


def test_soft_assignment_sums_to_one_and_peaks_at_the_nearest_center() -> None:
    codes, centers = torch.randn(20, 4), torch.randn(5, 4)
    belongs = soft_assignment(codes, centers)
    torch.testing.assert_close(belongs.sum(1), torch.ones(20))
    assert torch.equal(belongs.argmax(1), torch.cdist(codes, centers).argmin(1))


def test_sharpened_loss_pulls_to_the_nearer_center_and_the_smaller_cluster() -> None:
    centers = torch.tensor([[0.0], [4.0]])
    code = torch.tensor([[1.0]], requires_grad=True)
    sharpened_assignment_loss(code, centers, code.detach(), torch.tensor([0.5, 0.5])).backward()
    assert code.grad is not None
    assert code.grad.item() > 0, "gradient descent does not move the code to the nearer center"
    middle = torch.tensor([[2.0]], requires_grad=True)
    sharpened_assignment_loss(middle, centers, middle.detach(), torch.tensor([0.9, 0.1])).backward()
    assert middle.grad is not None
    assert middle.grad.item() < 0, "gradient descent does not move the code to the smaller cluster"


def test_neighbor_classifier_finds_clusters_of_different_spread() -> None:
    torch.manual_seed(0)
    labels = torch.arange(400) % 4
    means = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    spreads = torch.tensor([0.2, 0.5, 0.8, 0.3]).unsqueeze(1)
    codes = (means[labels] + spreads[labels] * torch.randn(400, 2)) / 2
    classifier = NeighborClassifier(2, 4)
    classifier.fit(codes, find_neighbors(codes, 5), num_starts=5)
    assert clustering_scores(labels, classifier(codes).argmax(1))["acc"] > 0.98


def test_neighbor_classifier_joins_clusters_whose_views_overlap() -> None:
    """Of four equal clusters of codes, two pairs have views in the same place."""
    torch.manual_seed(0)
    labels = torch.arange(400) % 4
    means = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0]])
    joined = torch.tensor([[3.0, 3.0], [3.0, -3.0], [3.0, -3.0], [3.0, 3.0]])
    codes = (means[labels] + torch.randn(400, 2) / 5) / 3
    views = [codes, (joined[labels] + torch.randn(400, 2) / 5) / 3]
    classifier = NeighborClassifier(2, 2)
    classifier.fit(codes, find_neighbors(codes, 5), num_starts=5, view_codes=views)
    pairs = torch.tensor([0, 1, 1, 0])[labels]  # diagonal corners
    assert clustering_scores(pairs, classifier(codes).argmax(1))["acc"] > 0.98


def test_classifier_is_trained_to_predict_given_clusters() -> None:
    torch.manual_seed(0)
    codes = torch.randn(200, 2)
    clusters = (codes.norm(dim=1) > 1).long()
    classifier = NeighborClassifier(2, 2)
    classifier.fit(codes, find_neighbors(codes, 5), num_starts=2)
    classifier.fit_clusters(codes, clusters)
    assert (classifier(codes).argmax(1) == clusters).float().mean() > 0.97
    classifier.fit_clusters(codes, 1 - clusters)
    assert (classifier(codes).argmax(1) == clusters).float().mean() < 0.03


def test_propagation_gives_a_row_the_cluster_of_the_rows_around_it() -> None:
    codes = torch.cat([torch.linspace(0, 1, 20), torch.linspace(5, 6, 20)]).unsqueeze(1)
    clusters = torch.arange(40) // 20
    wrong = clusters.clone()
    wrong[[3, 4, 30]] = 1 - wrong[[3, 4, 30]]
    probabilities = torch.eye(2)[wrong]
    propagated = propagate(probabilities, find_neighbors(codes, 4))
    assert torch.equal(propagated.argmax(1), clusters)
    torch.testing.assert_close(propagated.sum(1), torch.ones(40))


def test_with_propagation_only_the_first_fit_searches_for_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    technique = make_deep_kmeans(
        "model=deep_kmeans", "model.clusters=3", "model.pretrain=0.5", "model.propagate=true"
    )
    samples, fits = make_split(), []
    fit = NeighborClassifier.fit

    def count_fits(self: NeighborClassifier, *args: Any) -> None:
        fits.append(args)
        fit(self, *args)

    monkeypatch.setattr(NeighborClassifier, "fit", count_fits)
    with torch.no_grad():
        technique.fit_centers(samples, Clock(101, 200, 10))
        clusters = [technique.assign(batch) for batch in samples]
        technique.fit_centers(samples, Clock(111, 200, 10))
    assert len(fits) == 1
    assert all(
        torch.equal(technique.assign(batch), before) for batch, before in zip(samples, clusters, strict=True)
    ), "a later fit exchanged clusters"


def test_targets_are_those_of_the_encoder_at_the_last_fit() -> None:
    technique = make_deep_kmeans("model=deep_kmeans", "model.clusters=3", "model.propagate=true").train()
    images = make_split()[0]["image"]
    with torch.no_grad():
        technique.fit_centers(make_split(), Clock(1, 2, 1))
        before = technique.encode_in_eval_mode(images)
        torch.testing.assert_close(technique.encode_targets(images), before)
        technique.encoder(images)  # changes the running statistics
        for weight in technique.encoder.parameters():
            weight.mul_(1.5)
        torch.testing.assert_close(technique.encode_targets(images), before)
        assert not torch.allclose(technique.encode_in_eval_mode(images), before, atol=1e-2)
    assert technique.teacher is not None
    assert not any(weight.requires_grad for weight in technique.teacher.parameters())


def test_views_are_of_the_chosen_images() -> None:
    technique = make_deep_kmeans("model=deep_kmeans", "model.erase=0.5").eval()
    technique.augment = lambda images, *, can_erase: images  # type: ignore[method-assign]
    samples = make_split()
    images = torch.cat([batch["image"] for batch in samples])
    chosen = torch.tensor([0, 7, 19, 20, 41, 59])
    with torch.no_grad():
        views = technique.encode_views(samples, chosen)
        expected = technique.encode_in_eval_mode(images[chosen])
    assert len(views) == 4
    torch.testing.assert_close(views[3], expected)


def test_bands_are_erased_in_pretraining_only(monkeypatch: pytest.MonkeyPatch) -> None:
    technique = make_deep_kmeans("model=deep_kmeans", "model.erase=1", "model.pretrain=0.5")
    calls: list[float] = []

    def record_call(images: torch.Tensor, probability: float) -> torch.Tensor:
        calls.append(probability)
        return images

    monkeypatch.setattr("genexp.techniques.deep_kmeans.erase_bands", record_call)
    batch = make_split()[0]
    technique.loss(batch, make_clock(1, total=10))
    assert calls == [1, 1]
    technique.loss(batch, make_clock(10, total=10))
    assert calls == [1, 1]


def test_neighbor_loss_is_lowest_for_equal_pairs_in_clusters_of_equal_size() -> None:
    one_hot = torch.eye(4)
    best = neighbor_loss(one_hot[None], one_hot[None])
    assert best.item() == pytest.approx(-2 * torch.tensor(4.0).log().item())
    assert neighbor_loss(one_hot[None], one_hot.roll(1, 0)[None]) > best
    assert neighbor_loss(one_hot[None, [0, 0, 0, 1]], one_hot[None, [0, 0, 0, 1]]) > best


def test_neighbors_exclude_the_row_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("genexp.techniques._neighbor_classifier.NEIGHBOR_QUERIES", 2)
    assert find_neighbors(torch.tensor([[0.0], [1.0], [3.0], [3.5], [9.0]]), 1).flatten().tolist() == [
        1,
        0,
        3,
        2,
        3,
    ]


def test_contrastive_loss_prefers_views_of_the_same_image() -> None:
    views = torch.eye(4)
    similar, dissimilar = torch.tensor(1 / 0.3).exp(), 6
    assert contrastive_loss(views, views).item() == pytest.approx(-(similar / (similar + dissimilar)).log().item())
    assert contrastive_loss(views, views.roll(1, 0)) > contrastive_loss(views, views)


def test_contrast_is_part_of_pretraining_only() -> None:
    technique = make_deep_kmeans("model=deep_kmeans", "model.pretrain=0.5")
    batch = make_split()[0]
    assert "contrast" in technique.loss(batch, make_clock(5, total=10))[1]
    assert "contrast" not in technique.loss(batch, make_clock(6, total=10))[1]
    plain = make_deep_kmeans("model=deep_kmeans", "model.contrast=0")
    assert "contrast" not in plain.loss(batch, make_clock(1, total=10))[1]


def test_contrast_without_augmentation_is_rejected() -> None:
    with pytest.raises(ConfigError, match="contrast"):
        make_deep_kmeans(
            "model=deep_kmeans",
            *(f"model.{key}=0" for key in ("degrees", "pixels", "zoom", "shear", "erase")),
        )


def test_neighbor_classifier_is_part_of_the_checkpoint() -> None:
    state = make_deep_kmeans("model=deep_kmeans").state_dict()
    assert state["classifier.output_weight"].shape == (64, 10)
    assert not any(name.startswith("teacher") for name in state)
    assert "teacher.0.weight" in make_deep_kmeans("model=deep_kmeans", "model.propagate=true").state_dict()
    assert not any(
        name.startswith("classifier") for name in make_deep_kmeans("experiment=deep_kmeans_reference").state_dict()
    )


def test_encode_equals_encode_in_eval_mode_during_evaluation() -> None:
    technique = make_deep_kmeans("model=deep_kmeans").eval()
    images = make_split()[0]["image"]
    torch.testing.assert_close(technique.encode_in_eval_mode(images), technique.encode({"image": images}))


def test_scores_do_not_depend_on_the_batch_size() -> None:
    technique = make_deep_kmeans("model=deep_kmeans").eval()
    samples = make_split()
    whole: list[Batch] = [{name: torch.cat([batch[name] for batch in samples]) for name in samples[0]}]
    with torch.no_grad():
        parts, together = technique.evaluate(samples), technique.evaluate(whole)
        without = technique.evaluate([{"image": batch["image"]} for batch in samples])
    assert parts == pytest.approx(together, rel=1e-4)
    assert set(parts) == {"loss", "mse", "acc", "nmi", "ari"}
    assert set(without) == {"loss", "mse"}


def test_unused_centers_cause_a_warning() -> None:
    technique = make_deep_kmeans("model=deep_kmeans")
    assert technique.diagnose({"centers_used": 1.2, "loss": 1.0}) is not None
    assert technique.diagnose({"centers_used": 9.0}) is None
    assert technique.diagnose({"loss": 1.0}) is None


def test_run_writes_images_and_scores(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tiny = ("dataset.limit=80", "trainer.batch_size=20", "trainer.epochs=4", "device=cpu", "device.threads=1")
    result = run_genexp("model=deep_kmeans", *tiny, "model.pretrain=0.5", format_run_dir_override(folder))
    assert result.exit_code == 0, result.stderr
    for image in ("figures/tsne.png", "reconstructions.gif", "centers.gif"):
        assert (folder / image).is_file(), image
    assert {"acc", "nmi", "ari", "mse", "loss"} <= set(load_status(folder)["test"])
    train = [line for line in read_metrics_log(folder) if line["split"] == "train"]
    assert ["distance" in line for line in train] == [False] * 8 + [True] * 8


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_default_recipe_finds_the_ten_digits(tmp_path: Path) -> None:
    """k-means on the codes of a plain autoencoder reaches 0.73."""
    result = run_genexp("model=deep_kmeans", "device=cpu", "device.threads=1", format_run_dir_override(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert load_status(tmp_path)["test"]["acc"] >= 0.88


def test_more_clusters_than_images_are_rejected(tmp_path: Path) -> None:
    result = run_genexp(
        "model=deep_kmeans", "dataset.limit=40", "model.clusters=50", format_run_dir_override(tmp_path / "run")
    )
    assert result.exit_code == 1
    assert "model.clusters=50: exceeds the 40 training images" in result.stderr


@pytest.mark.parametrize(
    "override",
    [
        "model.alpha_ramp=[5,1]",
        "model.pretrain=1",
        "model.pretrain=0",
        "model.neighbors=0",
        "model.fits=0",
        "model.zoom=2",
        "model.erase=2",
        "model.shear=-1",
        "model.alpha=-1",
    ],
)
def test_invalid_settings_are_reported_with_their_key(override: str, tmp_path: Path) -> None:
    result = run_genexp("model=deep_kmeans", override, format_run_dir_override(tmp_path / "run"))
    assert result.exit_code == 1
    assert override.split("=")[0] in result.stderr
