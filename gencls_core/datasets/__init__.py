"""Data sets: every source becomes one prepared `Dataset`, read range by range.

`ingest` does it all; `open_source` shows what a source holds before anything is written.
"""

from gencls_core.datasets.dataset import Dataset, SplitInfo, SplitName
from gencls_core.datasets.export import export_per_class_json
from gencls_core.datasets.ingest import ingest
from gencls_core.datasets.open_source import open_source
from gencls_core.datasets.source import Example

__all__ = [
    "Dataset",
    "Example",
    "SplitInfo",
    "SplitName",
    "export_per_class_json",
    "ingest",
    "open_source",
]
