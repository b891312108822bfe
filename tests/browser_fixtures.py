"""A real browser for the tests of pages."""

from __future__ import annotations

import pytest

from benchmarks.browser import CHROMIUM, Browser

__all__ = ["Browser", "browser"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine to open the page in")
    return Browser(tmp_path_factory.mktemp("browser"))
