"""``user-pipeline forget``: take people out of all that is stored."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from user_pipeline import settings
from user_pipeline.cli.opened import opened_lake

if TYPE_CHECKING:
    from collections.abc import Iterable

    from user_pipeline.reconcile.forgetting.forget import Found

_LARGEST = 2**63 - 1


@click.command()
@click.argument("user_ids", nargs=-1, metavar="[USER_ID]...")
@click.option("--file", "listed", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Ids, one a line.")
@click.option("--yes", is_flag=True, help="Do it. Without this it only says what it would remove.")
def forget(user_ids: Sequence[str], listed: Path | None, *, yes: bool) -> None:
    r"""Take people out of tables, lake and exports, and keep out what is delivered of them later.

    \b
      user-pipeline forget 1572               what there is of a user
      user-pipeline forget 1572 --yes         remove it
      user-pipeline forget --file ids.txt --yes

    Rows, rejected lines that give the id, daily aggregates, snapshots and exports go; what counts the people is made
    anew without them. Their lines become rejects without text, those of objects that are read again too. It can
    be killed and started again. docs/privacy.md says what it does not reach.
    """
    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.interrupts import cancelled_by, watched
    from user_pipeline.reconcile.forgetting.forget import forget as remove
    from user_pipeline.reconcile.forgetting.forget import not_suppressed, survey

    people = _people(user_ids, listed)
    current = settings.current()
    with Engine(current) as engine, opened_lake() as lake, watched(), cancelled_by(engine.interrupt):
        if not yes:
            _print(survey(lake, engine, people))
            click.echo(f"{not_suppressed(lake, people):,} of {len(people):,} people are not on the suppression list.")
            click.echo("Nothing was removed: add --yes to do it.")
            return
        _print(survey(lake, engine, people))
        remove(lake, engine, people)
        left = [found for found in survey(lake, engine, people) if found.rows]
        if left:
            _print(left)
            raise click.ClickException("this is left, or was written meanwhile: run it again")
        click.echo("Removed; nothing is left. What is delivered of them is rejected as suppressed_user.")


def _people(user_ids: Sequence[str], listed: Path | None) -> list[int]:
    given = [("USER_ID", text) for text in user_ids]
    if listed:
        lines = listed.read_text(encoding="utf-8").splitlines()
        given += [(f"{listed}, line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not given:
        raise click.UsageError("Name at least one user id, or a --file with some.")
    people = set()
    for where, text in given:
        if not (text.isascii() and text.isdigit() and int(text) <= _LARGEST):
            raise click.BadParameter(f"{where}: {text[:40]!r} is no user id, a whole number from 0 to 2^63-1.")
        people.add(int(text))
    return sorted(people)


def _print(places: "Iterable[Found]") -> None:
    for found in places:
        if found.rows:
            files = "" if found.files is None else f" in {found.files:,} files"
            click.echo(f"{found.place}: {found.rows:,} rows{files}")
