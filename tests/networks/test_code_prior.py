"""Autoregressive prior over codes: causality, sampling and learning."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from genexp.networks.code_prior import CodePrior


def make_prior(num_codes: int = 5, length: int = 6) -> CodePrior:
    torch.manual_seed(0)
    return CodePrior(num_codes, length, width=16, num_layers=2, num_heads=2)


def test_logits_depend_on_earlier_codes_alone() -> None:
    prior, codes = make_prior(), torch.randint(0, 5, (1, 6))
    logits = prior(codes)
    for position in range(6):
        changed = codes.clone()
        changed[0, position] = (changed[0, position] + 1) % 5
        is_changed = (prior(changed) - logits).abs().amax(2)[0] > 1e-6
        assert is_changed.tolist() == [later > position for later in range(6)]


def test_sampling_follows_the_distribution_of_the_logits() -> None:
    """Sampling code by code with cached keys and values draws from the logits of whole sequences."""
    prior = make_prior(num_codes=2, length=2)
    for layer in prior.parameters():
        torch.nn.init.normal_(layer, std=0.7)
    with torch.no_grad():
        samples = prior.sample(20_000)
        sequences = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        log_probabilities = prior(sequences).log_softmax(2).gather(2, sequences[..., None]).sum((1, 2))
    frequencies = torch.bincount(2 * samples[:, 0] + samples[:, 1], minlength=4) / len(samples)
    torch.testing.assert_close(frequencies, log_probabilities.exp(), atol=0.015, rtol=0)


def test_prior_learns_a_sequence() -> None:
    prior = make_prior()
    codes = torch.tensor([[3, 1, 4, 1, 0, 2]]).repeat(8, 1)
    optimizer = torch.optim.Adam(prior.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(prior(codes).flatten(0, 1), codes.flatten()).backward()
        optimizer.step()
    with torch.no_grad():
        assert (prior.sample(20) == codes[0]).float().mean() > 0.9
