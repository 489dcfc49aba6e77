"""Take people out of raw, rejected and cleaned rows, and put them on the list of those whose lines are not kept."""

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from user_pipeline.ingest.entries import object_id
from user_pipeline.ingest.feeds import FEEDS, Feed
from user_pipeline.ingest.manifest_log import object_lines
from user_pipeline.ingest.manifest_tables import create_manifest
from user_pipeline.ingest.parsed import row_hash
from user_pipeline.ingest.rejects import create_rejects, replace_rejects
from user_pipeline.ingest.suppression import SUPPRESSED, suppress
from user_pipeline.lake.log import write_log
from user_pipeline.reconcile.forgetting.files import PeopleFiles
from user_pipeline.reconcile.forgetting.partitions import replace_files
from user_pipeline.resources.postgres import literal, quote
from user_pipeline.warehouse.tables import exists

if TYPE_CHECKING:
    import duckdb

    from user_pipeline.lake.partitions import LakeFile
    from user_pipeline.resources.postgres import Transaction

ASSET = "forget"
"""What commits that forget somebody are of."""


def forget_in_staging(files: PeopleFiles) -> None:
    """Do so in one transaction: lines that were rows become rejects without text, and the accounts still add up."""
    registry = files.lake.staging
    registry.open()
    with registry.database.transaction() as transaction:
        create_manifest(transaction)
        create_rejects(transaction)
        tables = [feed.name for feed in FEEDS if exists(transaction, feed.name)]
        for table in ("rejected_lines", *tables):
            transaction.execute(f"lock table public.{quote(table)} in share row exclusive mode")
        run_id = str(uuid.uuid4())
        version = registry.begin(transaction, ASSET, run_id, removing=True)
        lines = suppress(transaction, files.user_ids, version)
        with files.engine.connect() as connection:
            for feed in FEEDS:
                lines += _OfFeed(files, transaction, connection, feed).forget()
        for table in tables:
            transaction.execute(f"delete from public.{quote(table)} where user_id in {files.among}")
        write_log(registry.storage, registry.name, version, {"asset": ASSET, "run_id": run_id}, lines)


class _OfFeed:
    """The files of one feed, as the manifest and the registry know them in a transaction."""

    def __init__(
        self, files: PeopleFiles, transaction: "Transaction", connection: "duckdb.DuckDBPyConnection", feed: Feed
    ) -> None:
        self._files = files
        self._transaction = transaction
        self._connection = connection
        self._feed = feed
        self._name = literal(feed.name)
        self._moved: dict[str, LakeFile] = {}
        self._objects: set[str] = set()

    def forget(self) -> list[dict[str, Any]]:
        """Write anew what has rows of the people; returns the lines of the log."""
        self._connection.execute("create or replace temp table removed (source_object varchar, source_line bigint)")
        for path in self._paths("select distinct path from pipeline.ingested_days where path is not null"):
            self._forget_rows(path)
        keys = self._replace_rejects()
        self._objects |= set(keys)
        lines = replace_files(self._transaction, self._files, f"raw_{self._feed.name}", self._moved)
        lines += replace_files(self._transaction, self._files, self._feed.name, {})
        return [*lines, *self._object_lines()]

    def _paths(self, query: str) -> list[str]:
        """The files of a query that have rows of the people."""
        found = self._transaction.fetch(f"{query} and feed = {self._name} order by 1")
        return [path for (path,) in found if self._files.rows(path)]

    def _forget_rows(self, path: str) -> None:
        """Write a part file anew, and point the manifest to it."""
        import duckdb

        brought = {
            key: (day, rows)
            for key, day, rows in self._transaction.fetch(
                "select o.key, d.day, d.rows from pipeline.ingested_days d "
                "join pipeline.ingested_objects o on o.feed = d.feed and o.object_id = d.object_id "
                f"where d.feed = {self._name} and d.path = $1",
                (path,),
            )
        }
        with self._files.local(path) as old:
            self._connection.execute(
                "insert into removed select source_object, source_line "
                "from read_parquet($file, hive_partitioning = false) "
                f"where user_id in {self._files.among} and list_contains($keys, source_object)",
                {"file": str(old), "keys": list(brought)},
            )
        moved, local = self._files.without(path)
        left = {
            key: (rows, f"{duckdb.__version__}:{digest}")
            for key, rows, digest in self._connection.execute(
                f"select source_object, count(*), printf('%016x', bit_xor({row_hash(self._feed)})) "
                "from read_parquet($file, hive_partitioning = false) group by all",
                {"file": str(local)},
            ).fetchall()
        }
        local.unlink()
        self._moved[path] = moved
        self._objects |= set(brought)
        self._point_to(path, moved, {key: (day, *left.get(key, (0, None))) for key, (day, _) in brought.items()})

    def _point_to(self, path: str, file: "LakeFile", brought: Mapping[str, tuple[date, int, str | None]]) -> None:
        import pyarrow as pa

        schema = pa.schema(
            [("object_id", pa.binary()), ("day", pa.date32()), ("rows", pa.int64()), ("digest", pa.string())]
        )
        rows = [
            {"object_id": object_id(key), "day": day, "rows": count, "digest": digest}
            for key, (day, count, digest) in brought.items()
        ]
        self._transaction.load("left_rows", pa.Table.from_pylist(rows, schema).to_reader())
        # The version stays: what is made of the day is mended here, and nothing has to be materialized again.
        self._transaction.execute(
            f"""
            update pipeline.ingested_days d set rows = l.rows, digest = l.digest,
              path = case when l.rows > 0 then $2::text end, file_rows = case when l.rows > 0 then $3::bigint end,
              file_size = case when l.rows > 0 then $4::bigint end
            from left_rows l
            where d.feed = {self._name} and d.path = $1::text and d.object_id = l.object_id and d.day = l.day
            """,
            (path, file.path, file.rows, file.size),
        )
        self._transaction.execute("drop table left_rows")

    def _replace_rejects(self) -> list[str]:
        """Write the rejects anew of all objects that lost rows, or whose file of rejects names the people.

        Returns:
            the keys of these objects.
        """
        named = self._paths(
            "select distinct rejects_path from pipeline.ingested_objects where rejects_path is not null"
        )
        removed = [key for (key,) in self._connection.execute("select distinct source_object from removed").fetchall()]
        by_path = self._rejects_of(removed, named)
        keys = sorted({*removed, *(key for there in by_path.values() for key in there)})
        if not keys:
            return []
        file = self._files.engine.new_scratch("rejects") / "rejects.parquet"
        self._connection.execute(
            "create or replace temp table kept_rejects as select source_object, source_line, "
            f"'{SUPPRESSED}' as reason, '' as line from removed"
        )
        for path, there in by_path.items():
            self._add_rejects(path, there)
        self._connection.execute(
            f"copy (from kept_rejects order by all) to {literal(str(file))} (format parquet, compression zstd)"
        )
        path = f"rejected/{self._feed.name}/{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:12]}.parquet"
        with file.open("rb") as content:
            self._files.lake.storage.lake.put(path, content)
        file.unlink()
        self._account(keys, path)
        rows = self._connection.execute(
            "select source_object, source_line, reason, line from kept_rejects order by all"
        ).to_arrow_reader(10_000)
        replace_rejects(self._transaction, self._feed, keys, rows)
        return keys

    def _rejects_of(self, keys: Sequence[str], paths: Sequence[str]) -> dict[str, list[str]]:
        """The files that have the rejects of some objects, and all objects of some files; by file the objects."""
        by_path: dict[str, list[str]] = defaultdict(list)
        self._load_ids("wanted", keys)
        among = ", ".join(map(literal, paths)) or "null"
        for path, key in self._transaction.fetch(
            f"select rejects_path, key from pipeline.ingested_objects where feed = {self._name} "
            "and rejects_path is not null "
            f"and (object_id in (select object_id from wanted) or rejects_path in ({among}))"
        ):
            by_path[path].append(key)
        self._transaction.execute("drop table wanted")
        return by_path

    def _add_rejects(self, path: str, keys: Sequence[str]) -> None:
        theirs = self._files.theirs(path)
        with self._files.local(path) as old:
            self._connection.execute(
                f"insert into kept_rejects select source_object, source_line, "
                f"case when {theirs} then '{SUPPRESSED}' else reason end, case when {theirs} then '' else line end "
                "from read_parquet($file, hive_partitioning = false) where list_contains($keys, source_object)",
                {"file": str(old), "keys": list(keys)},
            )

    def _account(self, keys: Iterable[str], path: str) -> None:
        """Count the rejects of objects anew, and fewer rows of those that lost some."""
        import pyarrow as pa

        counts: dict[str, dict[str, int]] = defaultdict(dict)
        for key, reason, lines in self._connection.execute(
            "select source_object, reason, count(*) from kept_rejects group by all order by all"
        ).fetchall():
            counts[key][reason] = lines
        lost = dict(self._connection.execute("select source_object, count(*) from removed group by all").fetchall())
        schema = pa.schema(
            [("object_id", pa.binary()), ("rejects", pa.int64()), ("rejected", pa.string()), ("lost", pa.int64())]
        )
        rows = [
            {
                "object_id": object_id(key),
                "rejects": sum(counts[key].values()),
                "rejected": json.dumps(counts[key]),
                "lost": lost.get(key, 0),
            }
            for key in keys
        ]
        self._transaction.load("accounts", pa.Table.from_pylist(rows, schema).to_reader())
        self._transaction.execute(
            f"""
            update pipeline.ingested_objects o set rows = o.rows - a.lost, rejects = a.rejects,
              rejected = a.rejected::jsonb, rejects_path = $1::text
            from accounts a where o.feed = {self._name} and o.object_id = a.object_id
            """,
            (path,),
        )
        self._transaction.execute("drop table accounts")

    def _object_lines(self) -> list[dict[str, Any]]:
        self._load_ids("changed_objects", sorted(self._objects))
        condition = f"o.feed = {self._name} and o.object_id in (select object_id from changed_objects)"
        lines = list(object_lines(self._transaction, condition))
        self._transaction.execute("drop table changed_objects")
        return lines

    def _load_ids(self, table: str, keys: Sequence[str]) -> None:
        import pyarrow as pa

        ids = pa.table({"object_id": pa.array(map(object_id, keys), pa.binary())})
        self._transaction.load(table, ids.to_reader())
