"""Take the pictures of the README and of docs/ from the page of a run.

python -m benchmarks.pictures RUN [--output docs]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.browser import CHROMIUM, Browser, Tab

__all__ = ["main"]

WIDTH, HEIGHT = 1200, 900


def main(arguments: list[str] | None = None) -> int:
    """Write report.png and evidence.png; 1 where there is no browser."""
    parser = argparse.ArgumentParser(prog="benchmarks.pictures", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="a run with --per-token")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of the pictures")
    asked = parser.parse_args(arguments)
    if CHROMIUM is None:
        print("no chromium here to take pictures with: `make browser`")
        return 1
    page = asked.run / "report" / "report.html"
    # Children of a browser that has ended may still write into its folder for a moment.
    folders = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folders as folder, Browser(Path(folder)).tab(page, WIDTH) as tab:
        for name, show in (("report", _as_it_opens), ("evidence", _an_opened_mistake)):
            show(tab)
            (asked.output / f"{name}.png").write_bytes(tab.picture())
    return 0


def _as_it_opens(tab: Tab) -> None:
    tab.ask("scrollTo(0, 0)")


def _an_opened_mistake(tab: Tab) -> None:
    tab.ask("document.querySelector('[data-is=search]').focus()")
    tab.press("Tab")
    tab.press("ArrowDown")  # wrong answers
    tab.tab_to(".texts .open")
    tab.press("Enter")
    tab.ask("document.activeElement.blur(); document.getElementById('texts').scrollIntoView()")


if __name__ == "__main__":
    raise SystemExit(main())
