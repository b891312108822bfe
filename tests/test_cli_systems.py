"""Settings of other systems as flags and in run files: prompts, words of classes, defaults."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from gencls_core.config import SECTIONS, RunConfig, SystemsConfig
from gencls_core.config_parsing import parse_run_config
from gencls_core.errors import UsageError
from jobs.init import _toml, render_run_file
from jobs.options import SectionedCommand, build_config, given_values, section_options


def parsed(*arguments: str) -> dict[str, Any]:
    """Give what a command gets of these arguments, sorted into sections."""
    return given_values(flags_of(*arguments))


def flags_of(*arguments: str) -> dict[str, Any]:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    flags: dict[str, Any] = result.return_value
    return flags


def invoke(*arguments: str) -> Result:
    @click.command(cls=SectionedCommand)
    @section_options("systems", "scoring")
    def command(**flags: Any) -> dict[str, Any]:
        return flags

    return CliRunner().invoke(command, arguments, standalone_mode=False)


def test_nothing_given_is_nothing():
    assert parsed() == {}
    assert parsed("--shard-size", "4") == {"scoring": {"shard_size": 4}}
    # A command without these options.
    assert given_values({"epochs": 2.0}) == {"training": {"epochs": 2.0}}
    assert given_values({"gradient_checkpointing": False, "patience": 0}) == {
        "training": {"gradient_checkpointing": False, "patience": 0}
    }


def test_prompts_are_given_one_by_one():
    values = parsed("--prompt", r"Über {class}, kurz:\n\n", "--prompt", "{class}=\n")
    assert values == {"systems": {"prompts": ("Über {class}, kurz:\n\n", "{class}=\n")}}
    assert parse_run_config(values).systems.prompts[0] == "Über {class}, kurz:\n\n"


def test_words_are_given_class_by_class():
    words = {"World": "world news", "Sci/Tech": "E = mc²", "x": ""}
    values = parsed(*(f"--class-words={name}={of_class}" for name, of_class in words.items()))
    assert values == {"systems": {"class_words": words}}
    assert parse_run_config(values).systems.class_words == words


def test_the_other_settings_of_systems():
    values = parsed("--masked-model", "x", "--masked-likelihood", "sampled", "--mask-samples", "3")
    assert parse_run_config(values).systems == SystemsConfig(
        masked_model="x", masked_likelihood="sampled", mask_samples=3
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class-words", "World"], r"'--class-words': 'World' is not CLASS=WORDS"),
        (["--class-words", "a=b", "--class-words", "a=c"], r"'--class-words': .* twice: 'a'"),
        (["--masked-likelihood", "loud"], r"'--masked-likelihood'.*'pseudo', 'sampled'"),
        (["--prompts", "{class}"], r"No such option '--prompts'"),
    ],
)
def test_flags_that_cannot_be_read(arguments, message):
    error = invoke(*arguments).exception
    assert isinstance(error, click.UsageError)
    assert re.search(message, error.format_message())


def test_a_prompt_must_name_the_class():
    with pytest.raises(UsageError, match=r"systems\.prompts: 'Topic:' does not say where"):
        parse_run_config(parsed("--prompt", "{class}", "--prompt", "Topic:"))


def test_flags_override_the_run_file(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(
        '[systems]\nprompts = ["of the file: {class}\\n"]\nmask_samples = 5\n'
        'class_words = {World = "all", "a=b" = "x"}\n'
    )
    from_file = build_config(path, flags_of()).systems
    assert from_file.prompts == ("of the file: {class}\n",)
    assert from_file.class_words == {"World": "all", "a=b": "x"}
    flags = flags_of("--prompt", "{class}", "--class-words", "World=news")
    systems = build_config(path, flags).systems
    assert (systems.prompts, systems.mask_samples) == (("{class}",), 5)
    assert systems.class_words == {"World": "news"}


def test_the_help_shows_prompts_as_they_are_typed():
    text = " ".join(invoke("--help").output.split())
    assert r'[default: "Topic: {class}\n", "The following text' in text
    assert r"`\n` in it is a new line" in text
    assert "--class-words CLASS=WORDS" in text
    assert "[default: {}]" not in text
    assert "[default: ()]" not in text


def test_an_uncommented_run_file_has_the_defaults():
    """Every setting but those whose default is none; the example's own lines aside."""
    written = render_run_file()
    example = tomllib.loads(written)
    lines = re.sub(r"^# (?=\w+ = (?!…))", "", written, flags=re.MULTILINE)
    values = tomllib.loads(lines)
    assert parse_run_config(values) == parse_run_config(example)
    defaults = RunConfig()
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            if name in example[section]:
                continue
            assert (name in values[section]) == (field.default is not None), name
            if name in values[section]:
                found = getattr(getattr(parse_run_config(values), section), name)
                assert found == getattr(getattr(defaults, section), name), name
    assert values["baseline"] is defaults.baseline
    assert example.get("systems") == {}


@pytest.mark.parametrize(
    "value",
    [
        ("Topic: {class}\n\n", 'say "x"\\n', "tab\tand ünïcödé “数” 😀 \x01"),
        {"World": "world news", 'a "b" = c\\': "x\ny", "Sci/Tech": ""},
        {},
        (),
        True,
        1e-05,
        3,
        "C:\\new",
    ],
)
def test_defaults_are_written_as_toml(value):
    (found,) = tomllib.loads(f"key = {_toml(value)}").values()
    assert found == (list(value) if isinstance(value, tuple) else value)


def test_init_writes_what_run_reads(tmp_path: Path):
    from jobs.main import cli

    path = tmp_path / "experiment.toml"
    assert CliRunner().invoke(cli, ["init", str(path)]).exit_code == 0
    assert build_config(path, {}).systems == SystemsConfig()
