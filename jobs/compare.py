"""`gencls compare`."""

from __future__ import annotations

from typing import Any

import click

from gencls_core.remote_path import Location, as_location
from jobs.options import LocationType, SectionedCommand, build_config, section_options

__all__ = ["compare_command"]

OF_RUNS = "tfidf,nbsvm,naive-bayes,majority"
OF_DATA = "class-lm,zero-shot,discriminative,tfidf,nbsvm,naive-bayes,majority"


class _Numbers(click.ParamType):  # type: ignore[type-arg]
    """A comma-separated list of whole numbers; `all`, where it is allowed, becomes None."""

    name = "numbers"

    def __init__(self, lowest: int, *, every: bool) -> None:
        self._lowest = lowest
        self._every = every

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        found: list[int | None] = []
        for part in filter(None, (part.strip() for part in value.split(","))):
            if part == "all" and self._every:
                found.append(None)
            elif part.isdecimal() and int(part) >= self._lowest:
                found.append(int(part))
            else:
                wanted = f"a whole number from {self._lowest} on"
                self.fail(f"{part!r} is not {wanted}{', or `all`' if self._every else ''}")
        if not found:
            self.fail("no number")
        if len(set(found)) < len(found):
            self.fail(f"{value!r} names a number twice")
        return tuple(found)


@click.command(name="compare", cls=SectionedCommand)
@click.argument("runs", nargs=-1, type=LocationType(), metavar="[RUN]...")
@click.option(
    "--systems",
    help="What is compared, of class-lm, conditional-lm, joint-lm, zero-shot, discriminative, "
    "masked-lm, masked-lm-untrained, setfit, tfidf, nbsvm, naive-bayes and majority; what a RUN "
    f"lacks of it is made there.  [default: {OF_DATA}; with RUNs, all that is in them and "
    f"{OF_RUNS}]",
)
@click.option(
    "--train-sizes",
    type=_Numbers(1, every=True),
    default="all",
    show_default=True,
    help="Numbers of train texts per class (the part held out of them included), such as "
    "8,64,all: several give a learning curve.",
)
@click.option(
    "--seeds",
    type=_Numbers(0, every=False),
    default="0",
    show_default=True,
    help="A run for each, of the sample of train texts and of the training.",
)
@click.option(
    "--also",
    multiple=True,
    type=LocationType(),
    help="Folder of a comparison on other texts: does the pattern hold there? May be repeated.",
)
@click.option(
    "--output-dir",
    type=LocationType(),
    default="runs/comparison",
    show_default=True,
    help="Where the report of the comparison goes, and the runs that are made for it.",
)
@section_options(
    "data",
    "model",
    "systems",
    "recipe",
    "training",
    "sequence",
    "scoring",
    "posterior",
    leave_out=(
        "max_samples",
        "sample_seed",
        "seed",
        "recipe",
        "budget",
        "folds",
        "ensemble",
        "costs",
    ),
)
@section_options("compute")
def compare_command(
    runs: tuple[Location, ...],
    systems: str | None,
    train_sizes: tuple[int | None, ...],
    seeds: tuple[int, ...],
    also: tuple[Location, ...],
    output_dir: Location,
    **flags: Any,
) -> None:
    """Compare systems on the same test texts, with intervals and significance.

    Give data, and the systems are run on it: a run for each number of train texts and each seed.
    The same command again makes what is missing. Or give RUNs that are there: those that differ in
    seeds alone are repetitions of one system; in `--max-samples`, points of its learning curve; in
    other settings, other systems, named after them.

    \b
      gencls compare --data-dir data/agnews-classifier --model smollm2-135m \\
                     --train-sizes 16,64,300 --seeds 0,1,2 --output-dir runs/agnews-compare
      gencls compare runs/agnews-seed0 runs/agnews-seed1 runs/agnews-seed2
    """
    from cluster.comparison import compare, compare_systems
    from gencls_core.errors import UsageError
    from jobs.progress import draw
    from jobs.summary import print_comparison

    config = build_config(None, {**flags, "output_dir": output_dir})
    has_data = config.data.data is not None or config.data.data_dir is not None
    if bool(runs) == has_data:
        raise UsageError.of(
            "both runs and data" if runs else "nothing to compare",
            expected="either RUN directories, or data to run the systems on",
            remedy="leave --data and --data-dir out" if runs else "--data-dir FOLDER, or RUNs",
        )
    names = _names(systems or (OF_RUNS if runs else OF_DATA))
    if not names or systems == "":
        raise UsageError.of("no system", place="--systems", found=repr(systems))
    if runs:
        _refuse_settings(click.get_current_context())
        folder = as_location(str(output_dir))
        paths = [run.absolute() for run in runs]
        draw(compare(paths, names, also, folder, config.compute, only=systems is not None))
    else:
        folder = config.output_dir
        draw(compare_systems(config, names, train_sizes, seeds, also))
    print_comparison(folder)


def _names(systems: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (name.strip() for name in systems.split(",")))))


def _refuse_settings(ctx: click.Context) -> None:
    """Refuse settings of runs that are made where the runs are there already."""
    from gencls_core.config import ComputeConfig
    from gencls_core.errors import UsageError

    allowed = {"runs", "systems", "also", "output_dir", *ComputeConfig.model_fields}
    for parameter in ctx.command.params:
        given = ctx.get_parameter_source(parameter.name or "")
        if parameter.name not in allowed and given == click.core.ParameterSource.COMMANDLINE:
            raise UsageError.of(
                f"{parameter.opts[0]} is a setting of runs that are made for a comparison",
                found="RUNs that are there",
                remedy=f"leave {parameter.opts[0]} out, or give data instead of RUNs",
            )
