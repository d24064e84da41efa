"""Projections and scatter plots of points."""

from __future__ import annotations

import torch

from genexp.images.scatter import draw_clusters, draw_lines, embed_tsne, project_pca


def test_project_pca_keeps_the_plane_of_largest_variance() -> None:
    plane = torch.randn(200, 2) * torch.tensor([5.0, 2.0])
    turned = torch.linalg.qr(torch.randn(6, 6)).Q[:2]  # (2, 6)
    points, _ = project_pca(plane @ turned + 7, torch.zeros(1, 6))
    torch.testing.assert_close(torch.pdist(points), torch.pdist(plane), rtol=1e-3, atol=1e-3)
    single, _ = project_pca(torch.ones(4, 1), torch.zeros(2, 1))
    assert single.shape == (4, 2)


def test_draw_clusters_returns_an_rgb_image() -> None:
    image = draw_clusters(
        torch.randn(30, 2), torch.arange(30) % 3, torch.zeros(3, 2), cluster_names=("a", "b", "c")
    )
    assert image.shape[0] == 3
    assert 0 <= float(image.min()) < float(image.max()) <= 1


def test_draw_lines_returns_an_rgb_image_of_the_lines() -> None:
    def draw(last: float) -> torch.Tensor:
        return draw_lines({"a": {1: 2.0, 4: last}, "b": {2: 1.0}}, x_label="evaluations", y_label="distance")

    image = draw(1.0)
    assert image.shape[0] == 3
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert not torch.equal(image, draw(3.0))


def test_embed_tsne_accepts_identical_codes() -> None:
    assert embed_tsne(torch.ones(12, 4)).isfinite().all()
