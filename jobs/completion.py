"""`gencls completion`."""

from __future__ import annotations

from typing import Literal

import click

__all__ = ["COMPLETE_VARIABLE", "completion_command"]

COMPLETE_VARIABLE = "_GENCLS_COMPLETE"
"""Set by a shell that asks what a line could go on with; whatever gencls was started as."""


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: Literal["bash", "zsh", "fish"]) -> None:
    """Print the script that lets a shell complete commands, options and paths.

    \b
    For the shell that is open:
      source <(gencls completion bash)
      source <(gencls completion zsh)
      gencls completion fish | source

    \b
    For every shell from now on, at the end of ~/.zshrc after compinit:
      gencls completion bash >> ~/.bashrc
      gencls completion zsh >> ~/.zshrc
      gencls completion fish > ~/.config/fish/completions/gencls.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    script = kind(ctx.find_root().command, {}, "gencls", COMPLETE_VARIABLE).source()
    click.echo(script, nl=False)
