"""Headless browser for the tests of HTML reports."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import Browser, start_browser


@pytest.fixture(scope="package")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Return a browser that all tests of reports share."""
    with start_browser(tmp_path_factory.mktemp("profile")) as started:
        yield started
