"""Further keys and fields of a feed: what rows have beyond its columns, and which of them are still to be reported."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from user_pipeline.ingest.entries import FurtherField
from user_pipeline.resources.postgres import literal

if TYPE_CHECKING:
    from user_pipeline.ingest.feeds import Feed
    from user_pipeline.resources.postgres import Transaction

MOST_FURTHER_FIELDS = 1_000
"""How many names are kept of a feed at most: a key may be anything."""
FIELD = "further_field"
"""The kind of lines in logs."""
_RECOVERED = "recover"


def note_fields(transaction: "Transaction", feed: "Feed", fields: Sequence[FurtherField], version: int) -> None:
    """Note the fields that rows of a commit have; the lines of a known field are added to those it had."""
    import pyarrow as pa

    schema = pa.schema(
        [("name", pa.string()), ("lines", pa.int64()), ("source_object", pa.string()), ("source_line", pa.int64())]
    )
    rows = [{name: getattr(field, name) for name in schema.names} for field in fields]
    transaction.load("found_fields", pa.Table.from_pylist(rows, schema).to_reader())
    transaction.execute(
        f"""
        insert into pipeline.further_fields as f (feed, name, lines, source_object, source_line, version)
        select {literal(feed.name)}, name, lines, source_object, source_line, {version} from found_fields n
        where exists (select from pipeline.further_fields k where k.feed = {literal(feed.name)} and k.name = n.name)
          or (select count(*) from pipeline.further_fields where feed = {literal(feed.name)}) < {MOST_FURTHER_FIELDS}
        on conflict (feed, name) do update set lines = f.lines + excluded.lines
        """
    )


def tell_new(transaction: "Transaction", feed: "Feed", run_id: str) -> list[FurtherField]:
    """The fields that no earlier run has reported; from now on they count as reported by this run."""
    of = f"feed = {literal(feed.name)}"
    transaction.execute(
        f"update pipeline.further_fields set told_in = {literal(run_id)} where {of} and told_in is null"
    )
    found = transaction.fetch(
        f"select name, lines, source_object, source_line from pipeline.further_fields where {of} "
        f'and told_in = {literal(run_id)} order by name collate "C"'
    )
    return [FurtherField(*row) for row in found]


def field_lines(transaction: "Transaction", condition: str) -> list[dict[str, Any]]:
    """The lines of a log for the fields that fulfill a condition."""
    columns = ("feed", "name", "lines", "source_object", "source_line", "version")
    found = transaction.fetch(
        f'select {", ".join(columns)} from pipeline.further_fields where {condition} order by feed, name collate "C"'
    )
    return [{"kind": FIELD, **dict(zip(columns, row, strict=True))} for row in found]


def restore_fields(transaction: "Transaction", lines: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Restore the fields from lines of a log; the other lines are passed on."""
    for line in lines:
        if line["kind"] != FIELD:
            yield line
            continue
        transaction.execute(
            "insert into pipeline.further_fields (feed, name, lines, source_object, source_line, version, told_in) "
            "values ($1::text, $2::text, $3::bigint, $4::text, $5::bigint, $6::bigint, $7::text) "
            "on conflict (feed, name) do nothing",
            (
                *(line[name] for name in ("feed", "name", "lines", "source_object", "source_line", "version")),
                _RECOVERED,
            ),
        )
