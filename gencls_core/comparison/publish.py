"""Write a comparison: report.json, report.md, report.html, and the learning curve as a drawing."""

from __future__ import annotations

from gencls_core.comparison.html import render_curve, render_html
from gencls_core.comparison.markdown import render_markdown
from gencls_core.comparison.schema import Comparison
from gencls_core.remote_path import Location
from gencls_core.storage import write_json, write_text

__all__ = ["CURVE_NAME", "publish_comparison"]

CURVE_NAME = "learning-curve.svg"


def publish_comparison(comparison: Comparison, folder: Location) -> None:
    """Publish every form of a comparison in a folder or an object store.

    Each file is whole or absent; report.html comes last. The same comparison gives the same bytes.
    A learning curve of an earlier comparison is removed where there is none any more.

    Raises:
        StoreError: when the folder cannot be written to.
    """
    curve, page = render_curve(comparison), render_html(comparison)
    write_json(folder / "report.json", comparison.model_dump(mode="json"))
    if curve is None:
        (folder / CURVE_NAME).unlink(missing_ok=True)
    else:
        write_text(folder / CURVE_NAME, curve)
    name = None if curve is None else CURVE_NAME
    write_text(folder / "report.md", render_markdown(comparison, curve=name))
    write_text(folder / "report.html", page)
