"""A Ray of several raylets on this machine, each of which can be lost."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OBJECT_STORE_BYTES = 80_000_000


@contextmanager
def raylets(
    nodes: Mapping[str, Mapping[str, Any]],
    *,
    folders: Mapping[str, Path] | None = None,
    system_config: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Start a head without CPUs and the nodes named; connect; give the cluster and the nodes.

    Args:
        nodes: what each node has, as `Cluster.add_node` takes it.
        folders: where a node's workers start; default: here.
        system_config: settings of the raylets beside those that all tests use.
    """
    import ray
    from ray.cluster_utils import Cluster

    # Otherwise each raylet starts a worker per CPU at once, whether or not it is wanted.
    settings = {"enable_worker_prestart": False, "prestart_worker_first_driver": False}
    small = {"object_store_memory": OBJECT_STORE_BYTES}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "num_gpus": 0,
            "include_dashboard": False,
            "_system_config": {**settings, **(system_config or {})},
            **small,
        },
    )
    home = Path.cwd()
    started = {}
    try:
        for name, has in nodes.items():
            # Workers inherit their raylet's folder.
            os.chdir((folders or {}).get(name, home))
            started[name] = cluster.add_node(**has, **small)
        os.chdir(home)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                address=cluster.address,
                namespace="gencls",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        yield cluster, started
    finally:
        os.chdir(home)
        ray.shutdown()
        cluster.shutdown()
