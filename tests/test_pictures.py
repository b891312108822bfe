"""Pictures of the documentation come from a page as it is."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from report_fixtures import make_run

from benchmarks.browser import CHROMIUM
from benchmarks.pictures import HEIGHT, WIDTH, main
from gencls_core.report.build import build_report


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_pictures_of_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    build_report(run)
    assert main([str(tmp_path / "run"), "--output", str(tmp_path)]) == 0
    pictures = {name: (tmp_path / f"{name}.png").read_bytes() for name in ("report", "evidence")}
    assert pictures["report"] != pictures["evidence"]
    for content in pictures.values():
        assert struct.unpack(">II", content[16:24]) == (WIDTH, HEIGHT)
        assert len(content) > 20_000, "a picture with hardly anything on it"
