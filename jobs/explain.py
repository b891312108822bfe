"""`gencls explain`."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from gencls_core.remote_path import Location
from jobs.options import LocationType

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from gencls_core.evidence import Evidence, Piece
    from gencls_core.phrases import Phrase

__all__ = ["explain_command"]

SHOWN_SPANS = 5
"""Phrases for either class."""


@click.command(name="explain")
@click.argument("run", type=LocationType())
@click.option("--example", help="A test text, by its example_id.")
@click.option("--text", help="Any text; the run's models score it here.")
@click.option("--phrases", is_flag=True, help="What speaks for each class over all test texts.")
@click.option("--class", "class_name", help="Whose evidence; default: the answer.")
@click.option("--against", help="The other class; default: the true one, or the second likeliest.")
@click.option("--prior", help="As of `report`; default: the run's.")
@click.option("--prior-from", type=click.Choice(["unlabelled"]), help="As of `report`.")
@click.option(
    "--ensemble",
    type=click.Choice(["none", "auto", "tfidf", "nbsvm", "discriminative"]),
    help="As of `report`, for --example; default: the run's.",
)
@click.option("--json", "as_json", is_flag=True, help="All items as JSON.")
def explain_command(
    run: Location,
    example: str | None,
    text: str | None,
    phrases: bool,
    class_name: str | None,
    against: str | None,
    prior: str | None,
    prior_from: str | None,
    ensemble: str | None,
    as_json: bool,
) -> None:
    """Show which words of a text decided, in nats that add up to the log-odds.

    \b
      gencls explain runs/agnews --example test-17
      gencls explain runs/agnews --text "The striker is hurt" --against Business
      gencls explain runs/agnews --phrases       # of a run with --per-token
    """
    from gencls_core.explanations import decisive_phrases, explain_example, explain_text
    from gencls_core.run import RunDirectory

    directory = RunDirectory(run)
    if (example is not None) + (text is not None) + phrases != 1:
        raise click.UsageError("give one of --example ID, --text TEXT and --phrases")
    if prior and prior_from:
        raise click.UsageError("give --prior or --prior-from, not both: each is the whole prior")
    pair: dict[str, Any] = {
        "class_name": class_name,
        "against": against,
        "prior": prior_from or prior,
    }
    if phrases and (ensemble or any(pair.values())):
        raise click.UsageError("--phrases is of all classes, and asks no prior and no ensemble")
    if text is not None and ensemble:
        raise click.UsageError("of an ensemble --text asks the likelihoods alone: leave --ensemble")
    if phrases:
        _show_phrases(decisive_phrases(directory), as_json)
        return
    if example is not None:
        found = explain_example(directory, example, ensemble=ensemble, **pair)
    else:
        found = explain_text(directory, text or "", **pair)
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    print_evidence(found, Console(highlight=False))


def _show_phrases(found: dict[str, list[Phrase]], as_json: bool) -> None:
    if as_json:
        listed = {name: [asdict(phrase) for phrase in of_class] for name, of_class in found.items()}
        click.echo(json.dumps(listed, indent=2, ensure_ascii=False))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    for name, of_class in found.items():
        table = Table(
            box=SIMPLE_HEAD, header_style="bold", title=escape(name), title_justify="left"
        )
        table.add_column("phrase", overflow="fold")
        for head in ("texts", "nats", "95 % interval"):
            table.add_column(head, justify="right")
        for phrase in of_class:
            interval = f"{_nats(phrase.low)} to {_nats(phrase.high)}"
            table.add_row(escape(phrase.words), f"{phrase.texts:,}", _nats(phrase.nats), interval)
        console.print(table)


def print_evidence(found: Evidence, console: Console) -> None:
    """Show a text with its words coloured, what adds up, and the phrases that decided most."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    a, b = found.class_name, found.against
    console.print(f"{a} rather than {b}: {_nats(found.log_odds)} nats", markup=False, style="bold")
    console.print(_coloured(found))
    if found.truncated:
        console.print("(the text was cut before it was scored)")
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    table.add_column("what speaks")
    table.add_column("nats", justify="right")
    words = sum(piece.nats for piece in found.tokens)
    table.add_row("the words", _nats(words))
    for name, nats in found.beside_words:
        if round(nats, 2):
            table.add_row(name, _nats(nats))
    table.add_row("together", _nats(found.total), style="bold")
    console.print(table)
    for name, sign in ((a, 1), (b, -1)):
        spans = [piece for piece in found.spans if sign * piece.nats > 0][:SHOWN_SPANS]
        if spans:
            console.print(f"For {name}:", markup=False)
        for piece in spans:
            shown = _harmless(" ".join(found.text[piece.start : piece.stop].split()))
            console.print(f"  {_nats(piece.nats):>8}  {shown}", markup=False)


def _coloured(found: Evidence) -> Text:
    """Put each word on a ground of its class's colour, the stronger the more it says."""
    from rich.text import Text

    from gencls_core.evidence import strengths_of

    words = found.words
    drawn, end = Text(), 0
    for word, strength in zip(words, strengths_of(words), strict=True):
        drawn.append(_harmless(found.text[end : word.start]))
        drawn.append(_harmless(found.text[word.start : word.stop]), style=_style(word, strength))
        end = word.stop
    drawn.append(_harmless(found.text[end:]))
    return drawn


def _harmless(text: str) -> str:
    """Replace what a terminal would obey."""
    obeyed = {sign for sign in text if unicodedata.category(sign) == "Cc"} - {"\n", "\t"}
    return text.translate({ord(sign): "\N{REPLACEMENT CHARACTER}" for sign in obeyed})


def _style(word: Piece, strength: float) -> str:
    if not strength:
        return ""
    pale = round(235 - 115 * strength)
    ground = (pale, 235, pale) if word.nats > 0 else (245, pale, pale)
    return f"black on rgb({ground[0]},{ground[1]},{ground[2]})"


def _nats(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _as_json(found: Evidence) -> dict[str, Any]:
    def listed(pieces: tuple[Piece, ...]) -> list[dict[str, Any]]:
        return [
            {
                "text": found.text[piece.start : piece.stop],
                "start": piece.start,
                "stop": piece.stop,
                "nats": piece.nats,
            }
            for piece in pieces
        ]

    return {
        "text": found.text,
        "class": found.class_name,
        "against": found.against,
        "log_odds": found.log_odds,
        "end": found.end,
        "calibration": found.calibration,
        "prior": found.prior,
        "ensemble": found.ensemble,
        "rounding": found.rounding,
        "truncated": found.truncated,
        "tokens": listed(found.tokens),
        "words": listed(found.words),
        "spans": listed(found.spans),
    }
