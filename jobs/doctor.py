"""`gencls doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

__all__ = ["doctor_command"]

COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


@click.command(name="doctor")
@click.option(
    "--address",
    help="A Ray cluster to look at: HEAD:6379 as for `run`, or http://HEAD:8265 as for `submit`; "
    "default: those that GENCLS_ADDRESS, RAY_ADDRESS and RAY_API_SERVER_ADDRESS name.",
)
@click.option("--no-network", is_flag=True, help="Ask neither the hub nor a cluster.")
@click.option("--json", "as_json", is_flag=True, help="Say it in JSON.")
@click.pass_context
def doctor_command(
    ctx: click.Context, address: str | None, no_network: bool, as_json: bool
) -> None:
    """Check that this machine can work, and say what would mend it.

    Looks at packages, processor, memory, GPUs, folders, Ray and the hub; starts a small Ray of its
    own, and changes nothing. A problem keeps gencls from working, a warning is less than that. The
    exit code is 1 when there is a problem, else 0.

    \b
      gencls doctor
      gencls doctor --address HEAD:6379
    """
    from cluster.doctor import every_check
    from gencls_core.checks import examine
    from gencls_core.errors import counted

    found = []
    for finding in examine(every_check(address, network=not no_network)):
        found.append(finding)
        if not as_json:
            state = click.style(f"{finding.state:<7}", fg=COLOURS[finding.state])
            click.echo(f"{state}  {finding.name}: {finding.found}")
            if finding.remedy:
                click.echo(f"         → {finding.remedy}")
    problems = sum(finding.state == "problem" for finding in found)
    warnings = sum(finding.state == "warning" for finding in found)
    if as_json:
        value = {
            "problems": problems,
            "warnings": warnings,
            "findings": [asdict(finding) for finding in found],
        }
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        click.echo(f"{counted(problems, 'problem')}, {counted(warnings, 'warning')}")
    ctx.exit(1 if problems else 0)
