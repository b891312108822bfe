"""The process that holds a development cluster: several raylets on this machine, on loopback.

`dev_cluster.bring_up` starts it with the path of a description (JSON). It starts the nodes with
Ray's own `cluster_utils.Cluster`, writes `ready.json` beside the description and waits. When it
ends, however it ends, Ray's reaper ends its nodes.

Why not `ray start`: that replaces 127.0.0.1 by the address of the network card, and then Ray
listens on every interface.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Start the nodes that the description asks for, and wait for SIGTERM."""
    description = Path(sys.argv[1])
    wanted = json.loads(description.read_text(encoding="utf-8"))
    signal.signal(signal.SIGTERM, _end)
    import psutil
    from ray.cluster_utils import Cluster

    agents = wanted["agent_ports"]
    # Left to itself, each node would count all of the machine's memory as its own.
    memory = int(psutil.virtual_memory().available * 0.9 / len(agents))
    common = {
        "node_ip_address": "127.0.0.1",
        "num_cpus": wanted["cpus_per_node"],
        "num_gpus": wanted["gpus_per_node"],
        "memory": max(1, memory - wanted["object_store_bytes"]),
        "object_store_memory": wanted["object_store_bytes"],
        "include_log_monitor": False,
    }
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            **common,
            "gcs_server_port": wanted["port"],
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": wanted["dashboard_port"],
            "dashboard_agent_listen_port": agents[0],
        },
    )
    for number, port in enumerate(agents[1:], start=1):
        cluster.add_node(
            **common,
            dashboard_agent_listen_port=port,
            # Nodes that shared a folder would unpack a job's package over each other's feet.
            temp_dir=str(description.parent / f"n{number}"),
        )
    # Importing Ray or starting its nodes may have put another handler there.
    signal.signal(signal.SIGTERM, _end)
    ready = description.with_name("ready.json")
    unfinished = ready.with_suffix(".part")
    unfinished.write_text(json.dumps({"url": f"http://{cluster.webui_url}"}), encoding="utf-8")
    unfinished.replace(ready)
    while True:
        signal.pause()


def _end(signum: int, frame: FrameType | None) -> None:
    """Leave through the exit handlers: they end the nodes."""
    sys.exit(0)
