"""The pages' templates: one head, one style and one set of words for every page."""

from __future__ import annotations

from functools import cache

import jinja2

from gencls_core.report import words
from gencls_core.systems.names import system_title

__all__ = ["template"]

_SHARED = "gencls_core.report"


@cache
def template(package: str, name: str) -> jinja2.Template:
    """Give a template of a package, which may extend and include those of the report.

    Everything that it is given is escaped, and a name that it is not given is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(place, ".") for place in dict.fromkeys((package, _SHARED))]
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        above=words.above,
        by_answer=words.by_answer,
        choice=words.choice,
        confidence=words.confidence,
        ensemble=words.ensemble,
        percent=words.percent,
        count=words.count,
        nats=words.nats,
        number=words.number,
        signed=words.signed,
        perplexity=words.perplexity,
        duration=words.duration,
        memory=words.memory,
        rejection=words.rejection,
        system_title=system_title,
    )
    return environment.get_template(name)
