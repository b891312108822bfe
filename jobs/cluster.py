"""`gencls cluster`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cluster.dev_cluster import DevCluster

__all__ = ["cluster_command"]


@click.group(name="cluster")
def cluster_command() -> None:
    """Bring a Ray cluster for development up on this machine, and down again.

    Several nodes as processes of this machine, with a token, on loopback only.

    \b
      gencls cluster up --nodes 2 --cpus-per-node 2
      gencls submit -- run experiment.toml
      gencls cluster down
    """


@cluster_command.command(name="up")
@click.option("--nodes", type=click.IntRange(1, 64), help="How many, the head included [1].")
@click.option(
    "--cpus-per-node", type=click.IntRange(1), help="In Ray's books; default: this machine's."
)
@click.option(
    "--gpus-per-node",
    type=click.IntRange(0),
    help="In Ray's books [0]; they need not exist (then run with --device cpu).",
)
@click.option("--port", type=click.IntRange(1, 65535), help="For drivers; default: a free one.")
@click.option(
    "--dashboard-port", type=click.IntRange(1, 65535), help="For jobs; default: a free one."
)
def up_command(
    nodes: int | None,
    cpus_per_node: int | None,
    gpus_per_node: int | None,
    port: int | None,
    dashboard_port: int | None,
) -> None:
    """Start the cluster and wait until it takes jobs.

    \b
      gencls cluster up --nodes 2 --cpus-per-node 2
    """
    from cluster.dev_cluster import bring_up, dev_cluster

    found = dev_cluster()
    if found is not None and found.alive:
        click.echo(f"It is up already, {_size(found)}: {found.url}")
        asked = {
            "--nodes": (nodes, found.nodes),
            "--cpus-per-node": (cpus_per_node, found.cpus_per_node),
            "--gpus-per-node": (gpus_per_node, found.gpus_per_node),
            "--port": (port, _port(found.gcs_address)),
            "--dashboard-port": (dashboard_port, _port(found.url)),
        }
        other = [
            f"{n} {want} ({has} there)"
            for n, (want, has) in asked.items()
            if want not in (None, has)
        ]
        if other:
            click.echo(
                f"! not as asked: {', '.join(other)}. `gencls cluster down` ends it; then bring it "
                "up anew.",
                err=True,
            )
        return
    cluster = bring_up(
        nodes=nodes or 1,
        cpus_per_node=cpus_per_node or os.cpu_count() or 1,
        gpus_per_node=gpus_per_node or 0,
        port=port,
        dashboard_port=dashboard_port,
    )
    click.echo(f"{_size(cluster)}: {cluster.url} (this machine only)")
    click.echo(f"Its token: {cluster.token_path}. gencls uses it by itself.")
    click.echo("Submit with `gencls submit -- run …`; end it with `gencls cluster down`.")


@cluster_command.command(name="down")
def down_command() -> None:
    """End the cluster with everything that runs on it, and remove its files.

    \b
      gencls cluster down
    """
    from cluster.dev_cluster import bring_down, dev_cluster
    from gencls_core.errors import ResourceError

    cluster = dev_cluster()
    if cluster is None:
        click.echo("No development cluster is up.")
        return
    remaining = bring_down(cluster)
    if remaining:
        raise ResourceError.of(
            "processes of the cluster do not end",
            found=", ".join(f"pid {pid}" for pid in remaining),
            remedy="end them by hand, then `gencls cluster down` again",
        )
    click.echo("The development cluster is down; nothing of it is left.")


@cluster_command.command(name="status")
@click.option("--address", help="Of another cluster's dashboard: http://HEAD:8265.")
def status_command(address: str | None) -> None:
    """Say which cluster jobs go to, and what of it is in use.

    \b
      gencls cluster status
    """
    from cluster.dev_cluster import dev_cluster
    from cluster.target import find_target

    target = find_target(address)
    client = target.client()
    version = client.check()
    local = dev_cluster()
    what = _size(local) if target.development and local is not None else "a cluster"
    click.echo(f"{target.url}: {what}, Ray {version}")
    usage = client.usage()
    if usage is not None:
        click.echo(f"{usage}")
    states = [job.status for job in client.jobs()]
    counted = [f"{states.count(name)} {name.lower()}" for name in dict.fromkeys(states)]
    click.echo(f"jobs: {', '.join(counted) or 'none'}")
    if target.development and local is not None:
        click.echo(f"a driver joins with --address {local.gcs_address}")


def _size(cluster: DevCluster) -> str:
    has = [_count(cluster.cpus_per_node, "CPU")]
    if cluster.gpus_per_node:
        has.append(_count(cluster.gpus_per_node, "GPU"))
    each = " each" if cluster.nodes > 1 else ""
    return f"a development cluster of {_count(cluster.nodes, 'node')}, {' and '.join(has)}{each}"


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
