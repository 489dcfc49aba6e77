"""Days past their retention: their rows are gone from the lake and from staging for good.

The staging database and the logs of the lake say from which day on rows are kept. A row of an earlier day that is
delivered later is rejected without its text, and such a day changes no more, so that nothing materializes it again and
takes what the marts have of it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from user_pipeline.errors import PermanentError

if TYPE_CHECKING:
    from user_pipeline.lake.registry import Registry
    from user_pipeline.resources.postgres import Transaction

PAST_RETENTION = "past_retention"
"""Why a late row of such a day is rejected."""
RETIRED = "retired"
"""The kind of lines in logs."""
NOT_RETIRED = "coalesce((select kept_from from pipeline.retirement), '-infinity'::date)"
"""SQL of the staging database: the first day whose rows are kept."""
_CREATE = """
do $$
begin
  -- Rows of days before this one are gone: one row, or none as long as all are kept.
  create table pipeline.retirement (
    kept_from date not null,
    is_only_row boolean primary key default true check (is_only_row)
  );
end
$$
"""


class RetiredDayError(PermanentError):
    """A day is to be made of rows that were removed when their retention ended."""

    def __init__(self, day: date, kept_from: date) -> None:
        super().__init__(
            f"{day} is past its retention: its rows were removed, and materializing it would take what the marts have "
            f"of it. The first day that can be materialized is {kept_from}."
        )


def create_retirement(transaction: "Transaction") -> None:
    """Make the table unless it is there; those of the registry come first."""
    transaction.make_missing(["retirement"], lambda: transaction.execute(_CREATE), "pipeline")


def kept_from(registry: "Registry") -> date | None:
    """The first day whose rows are kept; None if all are."""
    registry.open()
    with registry.database.transaction() as transaction:
        create_retirement(transaction)
        return _kept_from(transaction)


def _kept_from(transaction: "Transaction") -> date | None:
    found = transaction.fetch("select kept_from from pipeline.retirement")
    return found[0][0] if found else None


def require_kept(registry: "Registry", days: Sequence[date]) -> None:
    """Refuse to work on days whose rows are gone.

    Raises:
        RetiredDayError: one of them is such a day.
    """
    first = kept_from(registry)
    if first and min(days) < first:
        raise RetiredDayError(min(days), first)


def retire(transaction: "Transaction", first: date) -> list[dict[str, Any]]:
    """Note the first day whose rows are kept, unless a later one is noted already.

    Args:
        transaction: on the staging database, within a commit.
        first: the day.

    Returns:
        the line of the log that tells of it.
    """
    create_retirement(transaction)
    transaction.execute(
        f"insert into pipeline.retirement as r (kept_from) values ('{first}') on conflict (is_only_row) "
        "do update set kept_from = greatest(r.kept_from, excluded.kept_from)"
    )
    return retirement_lines(transaction)


def drop_paths(transaction: "Transaction") -> None:
    """Take the files out of the manifest that are past their retention; what was counted in them stays.

    They are those with rows of such days, and those with rejects of objects that were last written before.
    """
    transaction.execute(
        f"update pipeline.ingested_days set path = null, file_rows = null, file_size = null "
        f"where path is not null and day < {NOT_RETIRED}"
    )
    transaction.execute(
        "update pipeline.ingested_objects set rejects_path = null "
        f"where rejects > 0 and rejects_path is not null and last_modified < {NOT_RETIRED}"
    )


def retirement_lines(transaction: "Transaction") -> list[dict[str, Any]]:
    """The line of a log that tells which days are gone; none if none is."""
    first = _kept_from(transaction)
    return [{"kind": RETIRED, "kept_from": first.isoformat()}] if first else []


def restore_retirement(transaction: "Transaction", lines: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Bring back what lines of a log say of it; the other lines are passed on."""
    for line in lines:
        if line["kind"] == RETIRED:
            retire(transaction, date.fromisoformat(line["kept_from"]))
        else:
            yield line
