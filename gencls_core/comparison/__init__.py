"""Systems on the same test texts, compared: which is better, by how much, and is that chance?"""

from __future__ import annotations

from gencls_core.comparison.build import compare_runs
from gencls_core.comparison.publish import publish_comparison
from gencls_core.comparison.reading import read_comparison
from gencls_core.comparison.schema import Comparison

__all__ = ["Comparison", "compare_runs", "publish_comparison", "read_comparison"]
