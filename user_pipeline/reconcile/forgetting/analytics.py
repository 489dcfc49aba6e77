"""Take people out of the marts and what they are made of, and make anew the snapshots that counted them."""

import uuid
from collections.abc import Iterator
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from user_pipeline.lake.log import write_log
from user_pipeline.lake.partitions import LakeFile, partitions_in
from user_pipeline.lake.transfer import new_path, put
from user_pipeline.recommendations.day import Snapshot, write_tables
from user_pipeline.recommendations.history import read_history
from user_pipeline.recommendations.quality import measure, quality_row
from user_pipeline.recommendations.snapshot import Choices
from user_pipeline.recommendations.window import Window
from user_pipeline.reconcile.forgetting.partitions import replace_files
from user_pipeline.reconcile.forgetting.staging import ASSET
from user_pipeline.resources.postgres import quote
from user_pipeline.warehouse.snapshots import publish
from user_pipeline.warehouse.statements import statements
from user_pipeline.warehouse.tables import columns_of, create_marts, replace_days, require_marts

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.lake import Lake
    from user_pipeline.reconcile.forgetting.files import PeopleFiles
    from user_pipeline.resources.postgres import Transaction

TABLES = ("users", "user_page_views", "page_recommendations", "page_recommendations_because")
"""The tables that have rows of people."""
_SNAPSHOTS = ("page_recommendations", "related_pages", "popular_pages")
"""What counts people. How the model was chosen is not made anew: it says how well it did for all users together."""
_DAY = timedelta(days=1)


def forget_in_analytics(files: "PeopleFiles") -> None:
    """Take them out of tables, daily aggregates and snapshots in one transaction, and note what has to be made anew."""
    registry = files.lake.analytics
    registry.open()
    with registry.database.transaction() as transaction:
        create_marts(transaction)
        transaction.execute(statements("users")["lock"])
        transaction.execute(statements("page_recommendations")["lock"])
        require_marts(transaction)
        run_id = str(uuid.uuid4())
        version = registry.begin(transaction, ASSET, run_id, removing=True)
        for day in _counted_in(transaction, files):
            transaction.execute(f"insert into pipeline.days_to_remake (day) values ('{day}') on conflict do nothing")
        lines: list[dict[str, Any]] = []
        for asset in ("users", "user_page_views", "page_recommendations"):
            lines += replace_files(transaction, files, asset, {})
        for table in TABLES:
            transaction.execute(f"delete from public.{quote(table)} where user_id in {files.among}")
        # An e-mail is a copy of that in users: nothing else holds one.
        write_log(registry.storage, registry.name, version, {"asset": ASSET, "run_id": run_id}, lines)


def _counted_in(transaction: "Transaction", files: "PeopleFiles") -> Iterator[date]:
    """The days whose snapshots were learned from views of the people, or have rows of them."""
    viewed = [
        day
        for day, there in partitions_in(transaction, "user_page_views").items()
        if any(files.rows(file.path) for file in there)
    ]
    days: dict[date, list[LakeFile]] = {}
    for table in _SNAPSHOTS:
        for day, there in partitions_in(transaction, table).items():
            days.setdefault(day, []).extend(there)
    for day, there in days.items():
        named = [file for file in there if file.path.startswith("snapshots/page_recommendations/")]
        if any(files.rows(file.path) for file in named):
            yield day
        elif any(view <= day for view in viewed):
            made_with = [choices for file in there if (choices := _choices(files, file.path))]
            first = min((Window(day, choices.window_days).first for choices in made_with), default=day)
            if any(first <= view <= day for view in viewed):
                yield day


def _choices(files: "PeopleFiles", path: str) -> Choices | None:
    with files.local(path) as file:
        try:
            return Choices.of(file)
        except KeyError:
            return None


def days_to_remake(lake: "Lake") -> list[date]:
    """The days whose snapshots still count people who were forgotten."""
    lake.analytics.open()
    with lake.analytics.database.transaction() as transaction:
        return [day for (day,) in transaction.fetch("select day from pipeline.days_to_remake order by day")]


def remake_days(files: "PeopleFiles") -> None:
    """Learn the snapshots of these days anew, each with what it was made with, and how good they were."""
    for day in days_to_remake(files.lake):
        _remake_snapshots(files, day)
        _remake_quality(files.lake, files.engine, day + _DAY, done=day)


def _remake_snapshots(files: "PeopleFiles", day: date) -> None:
    lake, engine = files.lake, files.engine
    made: dict[str, Snapshot] = {}
    by_choices: dict[Choices, list[str]] = {}
    for table in _SNAPSHOTS:
        for file in lake.analytics.partitions(table, [day]).get(day, []):
            if choices := _choices(files, file.path):
                by_choices.setdefault(choices, []).append(table)
    for choices, tables in by_choices.items():
        history = read_history(lake, engine, Window(day, choices.window_days), choices.eligibility)
        folder = engine.new_scratch("remade")
        made |= write_tables(history, day, choices, folder, tables=tables, choice=None)
    for table, snapshot in made.items():
        rows = engine.count([snapshot.path])
        stored = put(lake.storage, new_path(f"snapshots/{table}", day), snapshot.path, rows)
        with lake.analytics.database.transaction() as transaction:
            publish(transaction, table, day, snapshot.path, list(columns_of(transaction, table)))
            lake.analytics.commit(transaction, table, {day: [stored]}, str(uuid.uuid4()))


def _remake_quality(lake: "Lake", engine: "Engine", day: date, *, done: date) -> None:
    """Measure a day again, if it was measured, and note that the day before it is done."""
    table, registry = "recommendation_quality", lake.analytics
    file = engine.new_scratch("quality") / "rows.parquet"
    is_measured = day in registry.partitions(table, [day])
    if is_measured:
        rows = engine.write(quality_row(day, measure(day, engine, lake)), file)
        stored = put(lake.storage, new_path(f"quality/{table}", day), file, rows)
    with registry.database.transaction() as transaction:
        if is_measured:
            replace_days(transaction, table, "day", [day], [file])
            registry.commit(transaction, table, {day: [stored]}, str(uuid.uuid4()))
        transaction.execute(f"delete from pipeline.days_to_remake where day = '{done}'")
