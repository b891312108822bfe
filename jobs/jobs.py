"""`gencls jobs`, `status`, `logs` and `cancel`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from gencls_core.durations import duration
from jobs.submit import ADDRESS

__all__ = [
    "cancel_command",
    "follow_log",
    "jobs_command",
    "logs_command",
    "status_command",
]

JSON = click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
JOB = click.argument("job_id", metavar="ID")

PLAIN_WIDTH = 120
"""Characters of a line where no terminal says how many it has."""

END_SECONDS = 30.0
"""A log ends a little before Ray notes how the job ended."""


@click.command(name="jobs")
@ADDRESS
@JSON
@click.option("--last", type=click.IntRange(1), default=20, show_default=True, help="How many.")
def jobs_command(address: str | None, as_json: bool, last: int) -> None:
    """Show the queue and the history of a cluster, oldest first.

    \b
      gencls jobs
      gencls jobs --json
    """
    from cluster.job_view import views_of
    from cluster.target import find_target

    target = find_target(address)
    views = views_of(target.client(), last)
    if as_json:
        click.echo(json.dumps([view.to_json() for view in views], indent=2, ensure_ascii=False))
        return
    if not views:
        click.echo(f"No job has been submitted to {target.url}.")
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("id", "state"):
        table.add_column(name, no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("progress", overflow="fold")
    calibrated = any(view.accuracy_calibrated is not None for view in views)
    for name in ("age", "accuracy", *(["calibrated"] if calibrated else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for view in views:
        table.add_row(
            view.id,
            view.state,
            view.command,
            view.progress,
            duration(view.age_seconds),
            _percent(view.accuracy),
            *([_percent(view.accuracy_calibrated)] if calibrated else []),
        )
    console.print(table)
    for view in views:
        if view.why:
            console.print(f"{view.id}: {view.why}", markup=False, soft_wrap=True)


@click.command(name="status")
@JOB
@ADDRESS
@JSON
def status_command(job_id: str, address: str | None, as_json: bool) -> None:
    """Show one job: its state, how far it is, and why it waits or failed.

    \b
      gencls status gencls-run-1f3a9c0b7d52
    """
    from cluster.job_view import view_of
    from cluster.target import find_target

    client = find_target(address).client()
    view = view_of(client, client.job(job_id))
    if as_json:
        click.echo(json.dumps(view.to_json(), indent=2, ensure_ascii=False))
        return
    lines = {
        "job": view.id,
        "state": view.state,
        "command": f"gencls {view.command}",
        "progress": view.progress,
        "submitted": f"{duration(view.age_seconds)} ago",
        "took": "" if view.duration_seconds is None else duration(view.duration_seconds),
        "accuracy": _percent(view.accuracy),
        "calibrated": _percent(view.accuracy_calibrated),
        "run": view.run or "",
        "why": view.why,
    }
    for name, value in lines.items():
        if value:
            click.echo(f"{name:10} {value}")


@click.command(name="logs")
@JOB
@ADDRESS
@click.option("-f", "--follow", is_flag=True, help="Until the job is over; end with its exit code.")
def logs_command(job_id: str, address: str | None, follow: bool) -> None:
    """Print what a job has said.

    \b
      gencls logs gencls-run-1f3a9c0b7d52 -f
    """
    from cluster.job_view import without_marks
    from cluster.target import find_target

    client = find_target(address).client()
    if follow:
        follow_log(client, job_id)
    lines = without_marks(client.logs(job_id).splitlines())
    click.echo("\n".join(lines))


@click.command(name="cancel")
@JOB
@ADDRESS
def cancel_command(job_id: str, address: str | None) -> None:
    """Stop a job, and wait until its CPUs and GPUs are free.

    A shard in hand is committed first; the job has the seconds that it was submitted with to end.

    \b
      gencls cancel gencls-run-1f3a9c0b7d52
    """
    from cluster.submission import cancel
    from cluster.target import find_target

    for message in cancel(find_target(address).client(), job_id):
        click.echo(message)


def follow_log(client: Any, job_id: str) -> None:
    """Print a job's log until it is over, and exit with the job's result."""
    from cluster.errors import STOPPED_EXIT_CODE
    from cluster.job_view import view_of, without_marks

    try:
        rest = ""
        for piece in client.follow(job_id):
            *lines, rest = (rest + piece).split("\n")
            for line in without_marks(lines):
                click.echo(line)
        deadline = time.monotonic() + END_SECONDS
        job = client.job(job_id)
        while not job.over and time.monotonic() < deadline:
            time.sleep(0.3)
            job = client.job(job_id)
    except KeyboardInterrupt:
        click.echo(f"\nThe job goes on: gencls logs {job_id} -f", err=True)
        sys.exit(STOPPED_EXIT_CODE)
    view = view_of(client, job)
    click.echo(f"{job_id}: {job.status}" + (f", {view.why}" if view.why else ""), err=True)
    if job.status == "STOPPED":
        sys.exit(STOPPED_EXIT_CODE)
    sys.exit(0 if job.status == "SUCCEEDED" else (job.exit_code or 1))


def _percent(part: float | None) -> str:
    return "" if part is None else f"{100 * part:.1f} %"
