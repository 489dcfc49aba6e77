"""What logs of the lake tell of the manifest, and the manifest filled again from them.

Lines of the kind ``object`` hold the rows of an object in both tables as they are after the commit, those of the kind
``gone`` an object that was forgotten, those of the kind ``rewritten`` a file that all rows of a day are in.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from user_pipeline.resources.postgres import literal

if TYPE_CHECKING:
    from user_pipeline.ingest.feeds import Feed
    from user_pipeline.lake.partitions import LakeFile
    from user_pipeline.resources.postgres import Transaction

OBJECT, GONE, REWRITTEN = "object", "gone", "rewritten"
"""Kinds of lines in logs."""
_LINES_AT_ONCE = 10_000


def rewritten_line(feed: "Feed", day: date, file: "LakeFile") -> dict[str, Any]:
    """The line of a log that tells of :func:`.commit.point_to`."""
    told = {"path": file.path, "rows": file.rows, "size": file.size}
    return {"kind": REWRITTEN, "feed": feed.name, "day": day.isoformat(), "file": told}


def object_lines(transaction: "Transaction", condition: str) -> Iterator[dict[str, Any]]:
    """Lines of a log that tell all that the manifest knows of some objects.

    Args:
        transaction: on the staging database.
        condition: selects rows of ``pipeline.ingested_objects o``.
    """
    for batch in transaction.stream(
        f"""
        select jsonb_build_object(
          'kind', '{OBJECT}',
          'object', to_jsonb(o),
          'days', coalesce((
            select jsonb_agg(to_jsonb(d) - array['feed', 'object_id'] order by d.day) from pipeline.ingested_days d
            where d.feed = o.feed and d.object_id = o.object_id
          ), '[]')
        )::text as line
        from pipeline.ingested_objects o where {condition} order by feed, key collate "C"
        """
    ):
        yield from map(json.loads, batch["line"].to_pylist())


def orphan_lines(transaction: "Transaction") -> Iterator[dict[str, Any]]:
    """Lines of a log that tell of the days of objects that were forgotten."""
    for batch in transaction.stream(
        f"""
        select jsonb_build_object(
          'kind', '{GONE}', 'feed', d.feed, 'object_id', encode(d.object_id, 'hex'),
          'days', jsonb_agg(to_jsonb(d) - array['feed', 'object_id'] order by d.day)
        )::text as line
        from pipeline.ingested_days d
        where not exists (
          select from pipeline.ingested_objects o where o.feed = d.feed and o.object_id = d.object_id
        )
        group by d.feed, d.object_id
        """
    ):
        yield from map(json.loads, batch["line"].to_pylist())


def restore_lines(transaction: "Transaction", lines: Iterable[Mapping[str, Any]]) -> None:
    """Bring lines of a log into the manifest, in their order; those of other kinds are left out."""
    waiting: list[Mapping[str, Any]] = []
    for line in lines:
        if line["kind"] == REWRITTEN:
            _restore_objects(transaction, waiting)
            waiting = []
            _restore_rewritten(transaction, line)
        elif line["kind"] in (OBJECT, GONE):
            waiting.append(line)
            if len(waiting) == _LINES_AT_ONCE:
                _restore_objects(transaction, waiting)
                waiting = []
    _restore_objects(transaction, waiting)


def _restore_rewritten(transaction: "Transaction", line: Mapping[str, Any]) -> None:
    file = line["file"]
    transaction.execute(
        "update pipeline.ingested_days set path = $1::text, file_rows = $2::bigint, file_size = $3::bigint "
        f"where feed = {literal(line['feed'])} and day = {literal(line['day'])} and rows > 0",
        (file["path"], file["rows"], file["size"]),
    )


def _restore_objects(transaction: "Transaction", lines: Sequence[Mapping[str, Any]]) -> None:
    if not lines:
        return
    import pyarrow as pa

    def told(line: Mapping[str, Any]) -> dict[str, Any]:
        if line["kind"] == OBJECT:
            known = line["object"]
            return {"feed": known["feed"], "id": known["object_id"], "object": known, "days": line["days"]}
        return {"feed": line["feed"], "id": f"\\x{line['object_id']}", "object": None, "days": line.get("days")}

    rows = [told(line) for line in lines]
    table: pa.Table = pa.table(
        {
            "feed": pa.array([row["feed"] for row in rows], pa.string()),
            "id": pa.array([row["id"] for row in rows], pa.string()),
            "object": pa.array([json.dumps(row["object"]) if row["object"] else None for row in rows], pa.string()),
            "days": pa.array([json.dumps(row["days"]) if row["days"] is not None else None for row in rows]),
        }
    ).cast(pa.schema([(name, pa.string()) for name in ("feed", "id", "object", "days")]))
    transaction.load("told", table.to_reader())
    transaction.execute("analyze told")
    transaction.execute(
        "delete from pipeline.ingested_objects o using told t where o.feed = t.feed and o.object_id = t.id::bytea"
    )
    # Of an object that was forgotten the days stay, and a line of a checkpoint brings them.
    transaction.execute(
        "delete from pipeline.ingested_days d using told t where d.feed = t.feed and d.object_id = t.id::bytea "
        "and t.days is not null"
    )
    transaction.execute(
        """
        insert into pipeline.ingested_objects
        select o.* from told t
        cross join lateral jsonb_populate_record(null::pipeline.ingested_objects, t.object::jsonb) o
        where t.object is not null
        """
    )
    transaction.execute(
        """
        insert into pipeline.ingested_days
        select d.* from told t
        cross join lateral jsonb_array_elements(t.days::jsonb) brought
        cross join lateral jsonb_populate_record(
          null::pipeline.ingested_days, brought || jsonb_build_object('feed', t.feed, 'object_id', t.id)
        ) d
        """
    )
    transaction.execute("drop table told")
