"""A whole platform in a temporary directory, and short ways to use it as its users do."""

import contextlib
import functools
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
from obstore.store import LocalStore

from user_pipeline import settings
from user_pipeline.engines.duckdb import Engine
from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.lake.lake import Lake
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline.resources.object_store import open_store
from user_pipeline.resources.postgres import Databases, Postgres
from user_pipeline.resources.storage import ObjectStorage

LOG_PIPELINE = ("group:ingest", "group:raw", "group:cleaned", "group:marts", "group:exports")
# Of a few lines, drawing takes longer than all else.
UNDRAWN = (*LOG_PIPELINE[:-1], "group:exports and not key:traffic_report")


@functools.cache
def _job(select: tuple[str, ...], *, checks: bool, ingest: bool) -> dg.JobDefinition:
    """A job of the selected assets. To resolve one takes as long as some steps of it."""
    from user_pipeline.definitions import defs
    from user_pipeline.defs.ingest.data_versions import ingested_key, raw_key

    selection = dg.AssetSelection.from_coercible(list(select))
    selected = selection.resolve(defs.resolve_asset_graph())
    for feed in FEEDS:
        # As in the daily job: what is new is read before it becomes a raw day.
        if raw_key(feed) in selected and ingest:
            selection |= dg.AssetSelection.assets(ingested_key(feed))
    if not checks:
        selection = selection.without_checks()
    job = dg.define_asset_job("test_job", selection=selection)
    return dg.Definitions.merge(defs, dg.Definitions(jobs=[job])).resolve_job_def("test_job")


@dataclass(frozen=True)
class Platform:
    """Source and lake in a directory, staging and analytics in databases of their own."""

    root: Path
    environment: Mapping[str, str]
    settings: settings.Settings
    databases: Databases

    @classmethod
    @contextlib.contextmanager
    def create(cls, postgres: EmbeddedPostgres, root: Path, **overrides: str) -> Iterator["Platform"]:
        for name in ("staging", "analytics"):
            postgres.create_database(name)
        environment = {
            "USER_PIPELINE_SOURCE_URL": str(root / "source"),
            "USER_PIPELINE_LAKE_URL": str(root / "lake"),
            "USER_PIPELINE_STAGING_URL": postgres.url("staging"),
            "USER_PIPELINE_ANALYTICS_URL": postgres.url("analytics"),
            "USER_PIPELINE_DATA_DIR": str(root / "data"),
            "USER_PIPELINE_SCRATCH_DIR": str(root / "scratch"),
            # Tests have a handful of users.
            "USER_PIPELINE_RECOMMENDATION_MIN_VIEWERS": "1",
            **overrides,
        }
        (root / "source").mkdir(parents=True, exist_ok=True)
        settings.current.cache_clear()
        resolved = settings.Settings.from_environment(environment)
        databases = Databases(resolved)
        for database in (databases.staging, databases.analytics):
            # Far quicker than a new database for each test.
            with database.transaction() as transaction:
                transaction.execute("drop schema if exists public cascade")
                transaction.execute("create schema public")
                transaction.execute("drop schema if exists pipeline cascade")
        try:
            yield cls(root, environment, resolved, databases)
        finally:
            databases.close()
            settings.current.cache_clear()

    @property
    def staging(self) -> Postgres:
        return self.databases.staging

    @property
    def analytics(self) -> Postgres:
        return self.databases.analytics

    @property
    def storage(self) -> ObjectStorage:
        return ObjectStorage(self.settings)

    def engine(self) -> Engine:
        return Engine(self.settings)

    def put(self, path: str, content: bytes | str) -> None:
        """Deliver an object whole, as an upload does."""
        content = content.encode() if isinstance(content, str) else content
        url = self.settings.source.url
        store = open_store(self.settings.source) if url.startswith("s3://") else LocalStore(url, mkdir=True)
        store.put(path, content)

    def put_views(self, path: str, rows: Sequence[Mapping[str, Any] | str]) -> None:
        """Deliver page views: mappings become JSON lines, strings stay as they are."""
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        content = "".join(line + "\n" for line in lines).encode()
        self.put(path, gzip.compress(content, mtime=0) if path.endswith(".gz") else content)

    def materialize(
        self,
        first: str,
        last: str | None = None,
        *,
        select: str | Sequence[str] = UNDRAWN,
        checks: bool = True,
        ingest: bool = True,
        raise_on_error: bool = True,
        instance: dg.DagsterInstance | None = None,
        run_config: Any = None,
    ) -> dg.ExecuteInProcessResult:
        """Materialize a day or a range of days through Dagster, checks included."""
        tags = {
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last or first,
        }
        job = _job((select,) if isinstance(select, str) else tuple(select), checks=checks, ingest=ingest)
        return job.execute_in_process(
            tags=tags if last else None,
            partition_key=None if last else first,
            instance=instance,
            raise_on_error=raise_on_error,
            run_config=run_config,
        )

    def rows(self, database: str, sql: str) -> list[tuple[Any, ...]]:
        with getattr(self, database).transaction() as transaction:
            rows: list[tuple[Any, ...]] = transaction.fetch(sql)
        return rows

    def table(self, database: str, name: str) -> list[tuple[Any, ...]]:
        """All rows of a table, sorted; no rows if it does not exist."""
        [(exists,)] = self.rows(database, f"select to_regclass('public.{name}') is not null")
        return sorted(self.rows(database, f"select * from public.{name}"), key=repr) if exists else []

    @property
    def lake(self) -> Lake:
        return Lake(self.storage, self.databases)

    def lake_file(self, asset: str, day: str) -> Path:
        """The one file that a partition is made of now."""
        [url] = self.lake.urls(asset, date.fromisoformat(day), date.fromisoformat(day))
        return Path(url)

    def lake_files(self, folder: str = "") -> list[str]:
        root = self.root / "lake"
        return sorted(str(path.relative_to(root)) for path in (root / folder).rglob("*") if path.is_file())


def view(ts: str, url: str = "/a", user_id: Any = 1, environment: str = "production", **more: Any) -> dict[str, Any]:
    """One page view as the application logs it."""
    return {"ts": ts, "url": url, "environment": environment, "user_id": user_id, **more}


def update(
    updated_at: str,
    user_id: Any = 1,
    email: str = "a@example.com",
    name: str = "Ann",
    environment: str = "production",
) -> str:
    """One user update as the application logs it."""
    fields = (updated_at, str(user_id), email, name, environment)
    return ",".join('"' + field.replace('"', '""') + '"' for field in fields) + "\n"


def day(text: str) -> date:
    return date.fromisoformat(text)
