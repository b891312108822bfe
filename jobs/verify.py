"""`gencls verify`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from gencls_core.errors import counted
from gencls_core.remote_path import Location
from jobs.options import LocationType

if TYPE_CHECKING:
    from gencls_core.verify import Verification

__all__ = ["verify_command"]


@click.command(name="verify")
@click.argument("run", type=LocationType())
@click.option(
    "--repair", is_flag=True, help="Remove what is torn or an orphan; never a foreign file."
)
@click.option("--json", "as_json", is_flag=True, help="Say it in JSON.")
@click.pass_context
def verify_command(ctx: click.Context, run: Location, repair: bool, as_json: bool) -> None:
    """Check everything a run has committed against its digests.

    Reads every committed byte of the run and of its evaluations. The exit code is 0 when the run
    is whole and 1 when something is missing, torn, an orphan or foreign; after --repair, run the
    same `gencls run` again: it makes what was removed and nothing else.

    \b
      gencls verify runs/agnews
      gencls verify s3://bucket/runs/agnews --repair
    """
    from gencls_core import verify as verification
    from gencls_core.run import RunDirectory

    act = verification.repair if repair else verification.verify
    found = act(RunDirectory(run))
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        for finding in found.findings:
            click.echo(f"{finding.kind:<8} {finding.place}: {finding.problem}")
        for name in found.removed:
            click.echo(f"removed  {name}")
        click.echo(
            f"{'whole' if found.whole else 'not whole'}: {counted(found.models, 'model')}, "
            f"{counted(found.shards, 'shard')}, {counted(found.datasets, 'dataset')} checked"
        )
        if not found.whole:
            click.echo(_advice(found, repaired=repair))
    ctx.exit(0 if found.whole else 1)


def _advice(found: Verification, *, repaired: bool) -> str:
    if found.removed:
        return "Run the same command again: it makes what was removed."
    if not repaired and any(finding.remove for finding in found.findings):
        return "`gencls verify --repair` removes what is torn or an orphan."
    if any(finding.kind == "missing" for finding in found.findings):
        return "Run the same command again: it makes what is missing."
    return "gencls removes nothing of this: look at it, and move it away by hand."
