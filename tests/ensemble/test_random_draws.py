"""Random draws of ensemble members."""

from __future__ import annotations

import pytest
import torch

from genexp.ensemble.compatibility import VaryingHyperparameters
from genexp.ensemble.random_draws import EnsembleFunctionMode, MemberGenerators

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def test_unsupported_random_function_is_rejected() -> None:
    generators = [MemberGenerators(), MemberGenerators()]
    for generator in generators:
        generator.seed(0)

    def draw(index: torch.Tensor) -> torch.Tensor:
        with EnsembleFunctionMode(generators, VaryingHyperparameters([]), index):
            return torch.poisson(torch.ones(3))

    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(draw, randomness="error")(torch.arange(2))
