"""Whether all nodes of a cluster see the same folder.

A run directory on the driver's own disk would be filled piecemeal, every node writing to a disk of
its own, and the run would fail hours later, at the first class model that is read elsewhere. So it
is tried first: the driver writes a small hidden file, and a task on every node reads it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cluster.capacity import Node
from gencls_core.errors import ResourceError

__all__ = ["nodes_without", "require_shared"]

PROBE_SECONDS = 60.0


def nodes_without(path: Path, nodes: Sequence[Node], content: str | None = None) -> list[Node]:
    """Give the nodes whose workers cannot read `path`, or read something else there.

    Nodes without a CPU are left out: no work goes there. One machine alone is not asked.

    Args:
        path: a file or a folder.
        nodes: nodes of the cluster that Ray is connected to.
        content: what the file must hold; its folder must then be writable, too.
    """
    asked = [node for node in nodes if node.identity and node.cpus]
    if len(nodes) < 2 or not asked:
        return []
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(_sees)
    pending = {
        look.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.identity, soft=False),
        ).remote(str(path), content): node
        for node in asked
    }
    answered, _ = ray.wait(list(pending), num_returns=len(pending), timeout=PROBE_SECONDS)
    # A node that does not answer, or dies while it is asked, is one that work cannot rely on.
    seeing = set()
    for reference in answered:
        try:
            if ray.get(reference):
                seeing.add(pending[reference].identity)
        except ray.exceptions.RayError:
            continue
    return [node for node in asked if node.identity not in seeing]


def require_shared(folder: Path, nodes: Sequence[Node]) -> None:
    """Refuse a folder that some node does not share with this process.

    The folder is made if it is missing; the file that was written to try it is removed.

    Raises:
        ResourceError: naming the nodes.
    """
    if len(nodes) < 2:
        return
    folder.mkdir(parents=True, exist_ok=True)
    content = secrets.token_hex(16)
    probe = folder / f".shared-{content[:8]}"
    probe.write_text(content, encoding="ascii")
    try:
        missing = nodes_without(probe, nodes, content)
    finally:
        probe.unlink(missing_ok=True)
    if missing:
        raise ResourceError.of(
            "the run directory is not shared by all nodes",
            place=folder,
            found=f"not seen, or not writable, on {_names(missing)}",
            expected=f"one folder for all {len(nodes)} nodes",
            remedy="a path on a shared file system, or an object store (--output-dir s3://…)",
        )


def _sees(path: str, content: str | None) -> bool:
    """Run in a Ray worker."""
    seen = Path(path)
    try:
        if content is not None:
            same = seen.read_text(encoding="ascii") == content
            return same and os.access(seen.parent, os.W_OK)
        if seen.is_dir():
            return any(seen.iterdir())
        with seen.open("rb"):
            return True
    except (OSError, UnicodeError):
        return False


def _names(nodes: Sequence[Node]) -> str:
    shown = ", ".join(node.name for node in nodes[:5])
    return shown + (f" and {len(nodes) - 5} more" if len(nodes) > 5 else "")
