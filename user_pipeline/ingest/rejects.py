"""Make rejected lines queryable: the table ``rejected_lines`` of the staging database."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from user_pipeline.ingest.batch import PublishRejects
from user_pipeline.ingest.feeds import Feed

if TYPE_CHECKING:
    import pyarrow as pa

    from user_pipeline.resources.postgres import Postgres, Transaction


def publish_rejects(staging: "Postgres") -> PublishRejects:
    """A function that replaces the rejects of some objects in ``rejected_lines``; see :func:`replace_rejects`."""

    def publish(feed: Feed, objects: Sequence[str], rejects: "pa.RecordBatchReader") -> None:
        replace_rejects(staging, feed, objects, rejects)

    return publish


def replace_rejects(
    staging: "Postgres", feed: Feed, objects: Sequence[str] | None, rejects: "pa.RecordBatchReader"
) -> int:
    """Replace the rejects of some objects of a feed (None: of all) in ``rejected_lines``, in one transaction.

    The table has ``feed`` text, ``source_object`` text, ``source_line`` bigint, ``reason`` text and ``line`` text.

    Returns:
        how many there are now.
    """
    import pyarrow as pa

    with staging.transaction() as transaction:
        create_rejects(transaction)
        count = transaction.load("incoming", rejects)
        condition = "feed = $1"
        if objects is not None:
            keys = pa.table({"source_object": pa.array(objects, pa.string())})
            transaction.load("read_objects", keys.to_reader())
            condition += " and source_object in (select source_object from read_objects)"
        transaction.execute("lock table public.rejected_lines in share row exclusive mode")
        transaction.execute(f"delete from public.rejected_lines where {condition}", (feed.name,))
        transaction.execute(
            "insert into public.rejected_lines (feed, source_object, source_line, reason, line) "
            "select $1::text, source_object, source_line, reason, line from incoming order by 2, 3",
            (feed.name,),
        )
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
