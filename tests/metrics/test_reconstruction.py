"""MSE, PSNR and SSIM of images."""

from __future__ import annotations

import pytest
import torch

from genexp.metrics.reconstruction import mse, psnr, ssim


def _make_noisy_pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator)
    noise = torch.randn(shape, generator=generator) * torch.linspace(0, 0.5, shape[0])[:, None, None, None]
    return (target + noise).clamp(0, 1), target


def test_mse_is_per_image() -> None:
    targets = torch.zeros(3, 1, 2, 2)
    images = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None].expand_as(targets)
    torch.testing.assert_close(mse(images, targets), torch.tensor([0.0, 0.25, 1.0]))


def test_psnr_is_in_decibels_and_finite_for_identical_images() -> None:
    targets = torch.zeros(2, 1, 4, 4)
    images = torch.tensor([0.0, 0.1])[:, None, None, None].expand_as(targets)
    torch.testing.assert_close(psnr(images, targets), torch.tensor([100.0, 20.0]))


@pytest.mark.parametrize(
    "shape", [(5, 1, 28, 28), (5, 3, 32, 32), (5, 3, 64, 48), (5, 1, 8, 8), (5, 1, 6, 7)], ids=str
)
def test_ssim_equals_torchmetrics(shape: tuple[int, int, int, int]) -> None:
    from genexp.images.vision import torchvision  # noqa: F401 - torchmetrics imports torchvision, which only this makes safe

    # torchmetrics ≤ 1.5 crops the reflected borders.
    pytest.importorskip("torchmetrics", minversion="1.6")
    from torchmetrics.functional.image import structural_similarity_index_measure

    images, targets = _make_noisy_pair(*shape)
    expected = structural_similarity_index_measure(images, targets, data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim(images, targets), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_ssim_accepts_images_smaller_than_the_window(side: int) -> None:
    images, targets = _make_noisy_pair(4, 1, side, side)
    scores = ssim(images, targets)
    assert (scores <= 1).all()
    torch.testing.assert_close(ssim(targets, targets), torch.ones(4))
    assert (scores[1:] < 1).all()


def test_ssim_is_one_for_identical_images_and_stable_in_half_precision() -> None:
    images, targets = _make_noisy_pair(4, 3, 16, 16)
    torch.testing.assert_close(ssim(images, images), torch.ones(4))
    torch.testing.assert_close(ssim(images.half(), targets.half()), ssim(images, targets), atol=2e-3, rtol=0)


def test_ssim_is_the_same_under_autocast() -> None:
    images, targets = _make_noisy_pair(4, 1, 12, 12)
    expected = ssim(images, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ssim(images, targets), expected, atol=0, rtol=0)


def test_ssim_is_differentiable_after_use_in_inference_mode() -> None:
    images, targets = _make_noisy_pair(2, 1, 19, 23)
    with torch.inference_mode():
        ssim(images, targets)
    ssim(images.requires_grad_(), targets).mean().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
