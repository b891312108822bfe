"""Are the packages here that gencls asks for, in versions that it, and they, can work with?

Every range is read from the metadata of what is installed: gencls states its own in pyproject.toml.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from gencls_core.checks import Finding
from gencls_core.errors import ResourceError

__all__ = ["check_packages"]

_PROJECT = "gencls"
_SHOWN = (
    "torch", "transformers", "ray", "pyarrow", "duckdb", "tokenizers", "datasets", "peft",
)  # fmt: skip
"""Packages whose version is worth a word when nothing is wrong."""
_EXTRAS = {
    "gpu": "for training on a GPU with less memory",
    "setfit": "for the system `setfit` of `gencls compare`",
}
"""What users may want beside gencls, and what for."""


@dataclass(frozen=True)
class _Unmet:
    """A requirement that the installed packages do not meet."""

    requirement: Requirement
    installed: str | None
    """Version; None where the package is missing."""

    def __str__(self) -> str:
        asked = f"{self.requirement.name}{self.requirement.specifier}"
        return (
            f"{asked} is not installed"
            if self.installed is None
            else (f"{self.requirement.name} {self.installed} is not {self.requirement.specifier}")
        )


def check_packages() -> Iterator[Finding]:
    """Look at Python, at what gencls asks for, at what that asks for, and at gencls's extras.

    Raises:
        ResourceError: when gencls is not installed, so that nothing is known of what it asks for.
    """
    if _version(_PROJECT) is None:
        raise ResourceError.of(
            "gencls is here, but not installed: its requirements are not known",
            remedy=f"{sys.executable} -m pip install --editable . (in gencls's folder)",
        )
    yield _python()
    required = [*_requirements(_PROJECT)]
    unmet = [*_unmet(required)]
    if unmet:
        yield Finding("packages", "problem", "; ".join(map(str, unmet)), _install(unmet))
    else:
        versions = ", ".join(f"{name} {_version(name)}" for name in _SHOWN)
        yield Finding("packages", "ok", f"{versions}; all {len(required)} as gencls asks for them")
    told = {found.requirement.name for found in unmet}
    among = [one for one in _unmet_below(required) if one[1].requirement.name not in told]
    if among:
        yield Finding(
            "packages of packages",
            "warning",
            "; ".join(f"{found}, which {owner} asks for" for owner, found in among),
            _install([found for _, found in among]),
        )
    yield from map(_extra, _EXTRAS)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    asked = metadata.metadata(_PROJECT)["Requires-Python"]
    found = f"{version}, {sys.executable}"
    if SpecifierSet(asked).contains(version):
        return Finding("python", "ok", found)
    return Finding(
        "python",
        "problem",
        f"{found}; gencls asks for {asked}",
        f"make a virtual environment with Python {asked}",
    )


def _extra(extra: str) -> Finding:
    """Say whether the packages of an extra are here."""
    required = [*_requirements(_PROJECT, extra, alone=True)]
    unmet = [*_unmet(required)]
    name, purpose = f"extra {extra}", _EXTRAS[extra]
    if not unmet:
        versions = ", ".join(f"{one.name} {_version(one.name)}" for one in required)
        return Finding(name, "ok", f"{versions}, {purpose}")
    if all(found.installed is None for found in unmet):
        return Finding(name, "ok", f"not installed; {purpose}: {_install(unmet)}")
    return Finding(name, "warning", "; ".join(map(str, unmet)), _install(unmet))


def _requirements(package: str, extra: str = "", *, alone: bool = False) -> Iterator[Requirement]:
    """Give what a package asks for here.

    Args:
        package: an installed package.
        extra: one of its extras.
        alone: leave out what it asks for without the extra.
    """
    for line in metadata.requires(package) or []:
        requirement = Requirement(line)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always != alone and (always or (marker and marker.evaluate({"extra": extra}))):
            yield requirement


def _unmet(requirements: list[Requirement]) -> Iterator[_Unmet]:
    for requirement in requirements:
        installed = _version(requirement.name)
        # Builds such as 2.13.0+cpu and release candidates count as what they lead to.
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            yield _Unmet(requirement, installed)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _unmet_below(required: list[Requirement]) -> Iterator[tuple[str, _Unmet]]:
    """Give what packages that gencls asks for lack themselves, and so on, with who asks for it."""
    waiting, seen = list(required), set()
    while waiting:
        wanted = waiting.pop(0)
        for extra in wanted.extras or {""}:
            if (wanted.name, extra) in seen or _version(wanted.name) is None:
                continue
            seen.add((wanted.name, extra))
            asked = [*_requirements(wanted.name, extra)]
            yield from ((wanted.name, found) for found in _unmet(asked))
            waiting += asked


def _install(unmet: list[_Unmet]) -> str:
    wanted = dict.fromkeys(
        f"{found.requirement.name}{found.requirement.specifier}" for found in unmet
    )
    return shlex.join([sys.executable, "-m", "pip", "install", *wanted])
