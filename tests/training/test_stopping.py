"""Stop requests: signals and time budgets."""

from __future__ import annotations

import signal

import pytest

from genexp.training.stopping import StopRequest, stop_on_signals


def test_signals_are_handled_only_inside_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(None) as stop:
        assert stop.received_signal is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.received_signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_second_interrupt_exits_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    monkeypatch.setattr("os._exit", exits.append)
    notifications: list[str] = []
    with stop_on_signals(on_signal=lambda: notifications.append("once")) as stop:
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)
        assert (stop.received_signal, exits) == (signal.SIGUSR2, [])
        signal.raise_signal(signal.SIGINT)
    assert exits == [130]
    assert notifications == ["once"]


def test_time_budget_expires_after_its_seconds() -> None:
    assert not StopRequest().is_out_of_time
    assert not StopRequest(time_budget=3600).is_out_of_time
    assert StopRequest(time_budget=0).is_out_of_time
