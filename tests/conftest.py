"""Shared settings of the tests: no network, and nothing of the user's is touched."""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["GENCLS_HOME"] = tempfile.mkdtemp(prefix="gencls-home-")
