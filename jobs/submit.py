"""`gencls submit` and `gencls resubmit`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

__all__ = ["resubmit_command", "submit_command"]

SUBMITTED = (
    "run", "train", "evaluate", "classify", "compare", "report", "query", "plan", "prepare", "pull",
    "add-class", "drop-class",
)  # fmt: skip
"""The commands that make sense on a cluster."""

ADDRESS = click.option(
    "--address",
    help="The dashboard's address, http://HEAD:8265; default: RAY_API_SERVER_ADDRESS, else the "
    "development cluster.",
)
ENVIRONMENT = click.option(
    "--env",
    "environment",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="A variable for the job and its workers, by default with its value here; shown nowhere.",
)
WAIT = click.option(
    "-f", "--wait", "follow", is_flag=True, help="Follow the job's log; end with its exit code."
)


@click.command(name="submit")
@ADDRESS
@click.option(
    "--priority", type=int, default=0, show_default=True, help="Higher goes first in the queue."
)
@click.option(
    "--max-concurrent",
    type=click.IntRange(1),
    help="How many submitted runs may work at once on the cluster from now on [at first: 1].",
)
@ENVIRONMENT
@click.option(
    "--ship",
    multiple=True,
    metavar="PATH",
    help="A file or folder below the current one that goes along; the run file does anyway.",
)
@click.option(
    "--grace",
    type=click.IntRange(1),
    default=60,
    show_default=True,
    help="Seconds that a cancelled job has to end; it commits a shard in hand first.",
)
@click.option(
    "--driver-cpus",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="CPUs held for the job's main process; 0 runs it on the head node beside everything.",
)
@WAIT
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND")
def submit_command(
    address: str | None,
    priority: int,
    max_concurrent: int | None,
    environment: tuple[str, ...],
    ship: tuple[str, ...],
    grace: int,
    driver_cpus: float,
    follow: bool,
    command: tuple[str, ...],
) -> None:
    """Run a gencls command on a Ray cluster, as a job that outlives this terminal.

    The same command on the same files is one job, however often it is submitted. One that failed
    or was stopped is tried again, and goes on from what is committed.

    \b
      gencls submit -- run experiment.toml
      gencls submit --address http://head:8265 --priority 5 --env HF_TOKEN -f -- run experiment.toml
    """
    _check(command)
    from cluster.job_package import Shipment
    from cluster.submission import Options, submit
    from cluster.target import find_target

    values = _environment(environment)
    target = find_target(address)
    shipment = Shipment.of(command, ship, Path.cwd())
    options = Options(
        priority=priority,
        max_concurrent=max_concurrent,
        grace_seconds=grace,
        driver_cpus=driver_cpus,
        environment=values,
    )
    unshipped = [] if target.development else shipment.unshipped_paths()
    if unshipped:
        click.echo(
            f"! not shipped; the cluster must see it under the same path: {', '.join(unshipped)}",
            err=True,
        )
    client = target.client()
    done = submit(client, shipment, options)
    _tell(done.job_id, done.status, fresh=done.fresh, max_concurrent=max_concurrent)
    if done.fresh and done.previous is not None:
        click.echo(
            f"{done.previous.id} ended as {done.previous.status}: this attempt goes on from what "
            "it committed."
        )
    if follow:
        _follow(client, done.job_id)


@click.command(name="resubmit")
@click.argument("job_id", metavar="ID")
@ADDRESS
@ENVIRONMENT
@WAIT
def resubmit_command(
    job_id: str, address: str | None, environment: tuple[str, ...], follow: bool
) -> None:
    """Start a new attempt of a job that is over, even of one that succeeded.

    Variables that the job was sent with are taken from the environment again.

    \b
      gencls resubmit gencls-run-1f3a9c0b7d52
    """
    from cluster.submission import resubmit
    from cluster.target import find_target

    values = _environment(environment)
    client = find_target(address).client()
    done = resubmit(client, job_id, values)
    _tell(done.job_id, done.status, fresh=done.fresh)
    if follow:
        _follow(client, done.job_id)


def _check(command: tuple[str, ...]) -> None:
    """Refuse here what the cluster would refuse later."""
    from jobs.main import cli

    name, arguments = command[0], list(command[1:])
    if name not in SUBMITTED:
        raise click.UsageError(
            f"{name!r} cannot be submitted; these can: {', '.join(SUBMITTED)}. "
            "Write `gencls submit [options] -- run experiment.toml`."
        )
    if any(argument.split("=")[0] == "--address" for argument in arguments):
        raise click.UsageError(
            "the command runs on the cluster that it is sent to: give --address before `--`"
        )
    context = cli.make_context("gencls", [*command], resilient_parsing=True)
    found = cli.get_command(context, name)
    if found is None or {"--help", "-h"} & set(arguments):
        raise click.UsageError(f"`gencls {name} --help` shows help here; it need not be submitted")
    found.make_context(f"gencls {name}", arguments)
    for argument in arguments:
        if argument.endswith(".toml") and Path(argument).is_file():
            from gencls_core.config_parsing import load_run_config

            load_run_config(Path(argument))


def _environment(given: tuple[str, ...]) -> dict[str, str]:
    values = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise click.UsageError(f"--env: {name!r} is not the name of a variable")
        if name.startswith(("GENCLS_JOB", "RAY_")):
            raise click.UsageError(f"--env: {name} is set by the cluster")
        if not equals and name not in os.environ:
            raise click.UsageError(f"--env {name}: not set here; give {name}=VALUE, or set it")
        values[name] = value if equals else os.environ[name]
    return values


def _tell(job_id: str, status: str, *, fresh: bool, max_concurrent: int | None = None) -> None:
    unheeded = (
        ""
        if max_concurrent is None
        else f" --max-concurrent {max_concurrent} changed nothing: give it with a job that starts."
    )
    if fresh:
        click.echo(f"Submitted {job_id}.")
        click.echo(f"  gencls status {job_id} · gencls logs {job_id} -f · gencls cancel {job_id}")
    elif status == "SUCCEEDED":
        again = f"`gencls resubmit {job_id}` runs it again."
        click.echo(f"{job_id} has succeeded already: {again}{unheeded}")
    else:
        click.echo(f"{job_id} is there already ({status}): nothing was submitted.{unheeded}")


def _follow(client: object, job_id: str) -> None:
    from jobs.jobs import follow_log

    follow_log(client, job_id)
