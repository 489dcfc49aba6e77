"""Make rejected lines queryable: the table ``rejected_lines`` of the staging database."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from user_pipeline.ingest.feeds import Feed
from user_pipeline.resources.postgres import literal

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.resources.postgres import Transaction


def rejects_schema() -> "pa.Schema":
    """The columns of rejected lines, as files of the lake have them."""
    import pyarrow as pa

    return pa.schema(
        [("source_object", pa.string()), ("source_line", pa.int64()), ("reason", pa.string()), ("line", pa.string())]
    )


def replace_rejects(
    transaction: "Transaction", feed: Feed, objects: Sequence[str] | None, rejects: "pa.RecordBatchReader | None"
) -> int:
    """Replace the rejects of some objects of a feed (None: of all) in ``rejected_lines``; others who do so wait.

    The table has ``feed`` text, ``source_object`` text, ``source_line`` bigint, ``reason`` text and ``line`` text.

    Args:
        transaction: on the staging database.
        feed: the feed.
        objects: keys.
        rejects: the lines that are to be there for these objects; None for no lines.

    Returns:
        how many there are now.
    """
    import pyarrow as pa

    count = 0 if rejects is None else transaction.load("new_rejects", rejects)
    condition = f"feed = {literal(feed.name)}"
    if objects is not None:
        keys = pa.table({"source_object": pa.array(objects, pa.string())})
        transaction.load("rejecting_objects", keys.to_reader())
        condition += " and source_object in (select source_object from rejecting_objects)"
    transaction.execute("lock table public.rejected_lines in share row exclusive mode")
    transaction.execute(f"delete from public.rejected_lines where {condition}")
    if objects is not None:
        transaction.execute("drop table rejecting_objects")
    if rejects is not None:
        transaction.execute(
            "insert into public.rejected_lines (feed, source_object, source_line, reason, line) "
            f"select {literal(feed.name)}, source_object, source_line, reason, line from new_rejects order by 2, 3"
        )
        transaction.execute("drop table new_rejects")
    return count


def create_rejects(transaction: "Transaction") -> None:
    """Make ``rejected_lines`` if it is missing."""
    transaction.make_missing(["rejected_lines"], lambda: transaction.execute(_CREATE))


_CREATE = """
do $$
begin
  create table public.rejected_lines (
    feed text not null,
    source_object text not null,
    source_line bigint not null,
    reason text not null,
    line text not null
  );
  create index on public.rejected_lines (feed, source_object);
end
$$
"""
