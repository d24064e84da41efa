"""Quantizers: nearest codes, moving averages, restarts and FSQ."""

from __future__ import annotations

import pytest
import torch

from genexp.networks.quantizers import FiniteScalarQuantizer, VectorQuantizer


def make_vector_quantizer(
    num_codes: int = 4, restart_threshold: float = 0.0, decay: float = 0.5
) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(num_codes, 3, commitment=0.25, decay=decay, restart_threshold=restart_threshold)


def test_vectors_get_the_nearest_code() -> None:
    quantizer, vectors = make_vector_quantizer(), torch.randn(5, 7, 3)
    result = quantizer(vectors)
    assert torch.equal(result.codes, torch.cdist(vectors, quantizer.codebook).argmin(2))
    torch.testing.assert_close(result.vectors, quantizer.codebook[result.codes])
    torch.testing.assert_close(result.loss, 0.25 * (vectors - result.vectors).square().mean())


@pytest.mark.parametrize("quantizer", [make_vector_quantizer(), FiniteScalarQuantizer([8, 6, 5])])
def test_gradients_reach_the_vectors(quantizer: VectorQuantizer | FiniteScalarQuantizer) -> None:
    vectors = torch.zeros(2, 4, 3, requires_grad=True)
    quantizer(vectors).vectors.sum().backward()
    assert vectors.grad is not None
    assert (vectors.grad > 0).all()


def test_codes_converge_to_the_means_of_their_vectors() -> None:
    quantizer = make_vector_quantizer(num_codes=2)
    vectors = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [9, 9, 9]]])
    codes = torch.tensor([[0, 0, 1]])
    for _ in range(60):
        quantizer.update(vectors, codes)
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[1.0, 0, 0], [9, 9, 9]]))


def test_dead_codes_are_replaced_by_vectors_of_the_batch() -> None:
    quantizer = make_vector_quantizer(restart_threshold=0.1)
    with torch.no_grad():
        quantizer.codebook[3] = 1e6
    vectors = torch.randn(20, 5, 3)
    for step in range(20):
        torch.manual_seed(step)
        quantizer.update(vectors, quantizer(vectors).codes)
    assert torch.cdist(quantizer.codebook[3:], vectors.flatten(0, 1)).min() < 2
    assert len(quantizer(vectors).codes.unique()) == 4


def test_unused_codes_stay_without_restarts() -> None:
    quantizer = make_vector_quantizer()
    with torch.no_grad():
        quantizer.codebook[3], quantizer.sums[3] = 1e6, 1e6
    vectors = torch.randn(20, 5, 3)
    quantizer.update(vectors, quantizer(vectors).codes)
    torch.testing.assert_close(quantizer.codebook[3], torch.full((3,), 1e6))


def test_codebook_is_averaged_in_float32_under_autocast() -> None:
    vectors = torch.randn(20, 5, 3).bfloat16()
    expected, quantizer = make_vector_quantizer(), make_vector_quantizer()
    codes = expected(vectors.float()).codes
    expected.update(vectors.float(), codes)
    with torch.autocast("cpu", torch.bfloat16):
        quantizer.update(vectors, codes)
    torch.testing.assert_close(quantizer.sums, expected.sums)


def test_initial_codes_are_vectors_even_if_there_are_few() -> None:
    quantizer = make_vector_quantizer(num_codes=5)
    vectors = torch.randn(2, 3)
    quantizer.initialize(vectors)
    assert {tuple(code.tolist()) for code in quantizer.codebook} == {tuple(row.tolist()) for row in vectors}


@pytest.mark.parametrize("levels", [[3], [5, 4], [8, 6, 5]])
def test_finite_scalar_quantizer_reaches_every_code_and_inverts_it(levels: list[int]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    torch.manual_seed(0)
    vectors = 5 * torch.rand(1, 20_000, len(levels)) - 2.5
    result = quantizer(vectors)
    assert result.codes.unique().tolist() == list(range(quantizer.num_codes))
    torch.testing.assert_close(quantizer.look_up(result.codes), result.vectors)
    assert result.vectors.abs().max() <= 1
    assert result.loss == 0
