"""Rejection of runs that cannot form an ensemble."""

from __future__ import annotations

import pytest

from genexp.ensemble.compatibility import IncompatibleRunsError, VaryingHyperparameters
from tests.support.compose import make_tiny_overrides
from tests.support.ensembles import build_initialized_run, train_as_ensemble

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def test_dropout_between_convolutions_is_rejected() -> None:
    overrides = [[*make_tiny_overrides("dcgan"), "model.dropout=0.5", f"seed={seed}"] for seed in (1, 2)]
    first = build_initialized_run(*overrides[0])
    with pytest.raises(IncompatibleRunsError, match="dropout between convolutions"):
        train_as_ensemble([first, build_initialized_run(*overrides[1], data_from=first)], 1)


def test_differing_setting_that_is_not_a_float_is_reported() -> None:
    one = [
        build_initialized_run(*make_tiny_overrides("stacked_autoencoder"), f"model.activation={name}")
        for name in ("relu", "tanh")
    ]
    with pytest.raises(IncompatibleRunsError, match="activation"):
        VaryingHyperparameters([run.learner.technique for run in one])
    one = [
        build_initialized_run(*make_tiny_overrides("stacked_autoencoder"), f"model.widths={widths}")
        for widths in ("[8,4]", "[8,3]")
    ]
    with pytest.raises(IncompatibleRunsError, match="widths"):
        VaryingHyperparameters([run.learner.technique for run in one])
