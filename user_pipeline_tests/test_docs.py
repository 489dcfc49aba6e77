"""What the documentation says is there is there."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from types import ModuleType

import click
import pytest

from user_pipeline.cli.main import main
from user_pipeline_tests import CHECKOUT

DOCUMENTS = [CHECKOUT / "README.md", CHECKOUT / "CONTRIBUTING.md", *sorted((CHECKOUT / "docs").glob("*.md"))]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", CHECKOUT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["assets.md", "settings.md"])
def test_what_is_written_by_the_code_is_as_it_would_write_it_now(name: str) -> None:
    wanted = generator().PAGES[name]()
    assert (CHECKOUT / "docs" / name).read_text() == wanted, "run `make docs`"


def test_a_new_group_wants_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    module = generator()
    monkeypatch.delitem(module._GROUPS, "marts")
    with pytest.raises(ValueError, match="marts"):
        module.assets_page()


def commands(document: Path) -> Iterator[list[str]]:
    """The arguments of each ``user-pipeline`` that stands alone in code, its continued lines joined."""
    text = document.read_text().replace("\\\n", " ")
    lines = re.findall(r"^ {4,}(?:\$ )?(user-pipeline .*)$", text, re.MULTILINE)
    lines += [code for code in re.findall(r"`(user-pipeline [^`\n]*)`", text) if "…" not in code]
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = []
        # A statement of SQL may go on in further lines, its quotes with it.
        with suppress(ValueError):
            words = list(takewhile(lambda word: not set(word) & set("|&;<>"), lexer))
        if words:
            yield words[1:]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_that_is_documented_has_these_options(document: Path) -> None:
    for arguments in commands(document):
        command: click.Command = main
        context, rest = click.Context(main), arguments
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            found = command.get_command(context, rest[0])
            assert found is not None, f"{document.name}: user-pipeline {shlex.join(arguments)}"
            command, rest = found, rest[1:]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        if command.name != "psql":
            options = {word.partition("=")[0] for word in rest if word.startswith("-")}
            assert options <= known, f"{document.name}: user-pipeline {shlex.join(arguments)}"


def test_the_commands_are_found() -> None:
    found = [arguments for document in DOCUMENTS for arguments in commands(document)]
    assert len(found) > 40
    assert ["verify"] in found


def test_the_readme_is_short() -> None:
    assert len((CHECKOUT / "README.md").read_text().splitlines()) <= 150
