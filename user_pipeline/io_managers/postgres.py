"""Keep assets as tables in Postgres: day-sliced ones, and ones maintained from each day's contributions."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import narwhals as nw

from user_pipeline.engines.frames import hand_over, per_partition, to_reader
from user_pipeline.errors import PermanentError, never_retried
from user_pipeline.io_managers.metadata import PREVIEW_ROWS, PREVIEW_TEXT, preview, timed
from user_pipeline.resources.postgres import literal, quote
from user_pipeline.transforms import Frame
from user_pipeline.warehouse.partition_range import Slice
from user_pipeline.warehouse.replace import Table, columns_of, merge, replace_slice, require_marts

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.resources.postgres import Postgres, Transaction

_ENGINE_DIGITS = 38


class MissingTableError(PermanentError):
    """A table that is to be read was never written."""


@dataclass(frozen=True, slots=True)
class PerPartition:
    """What an asset gives that has more to say about its partitions once they are written.

    Attributes:
        frames: the rows of each partition.
        describe: metadata of a partition, from its key and how many rows of it were written.
    """

    frames: Mapping[str, Frame]
    describe: Callable[[str, int], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Contributions:
    """What an asset gives whose table is maintained from the contributions of each day.

    Attributes:
        by_day: the contributions of each day.
        add_up: sums up those of several days.
    """

    by_day: Mapping[str, Frame]
    add_up: Callable[[Frame], Frame]


class PostgresIOManager(dg.IOManager):
    """Tables in one Postgres database.

    As with Dagster's own database IO managers the schema is the asset's metadata ``schema``, or its key prefix, or
    the manager's; ``partition_expr`` in the asset's metadata names the column (or SQL expression) that tells a
    row's partition, and ``columns`` in an input's metadata selects columns. The partitions of a run are one slice,
    replaced in one transaction.

    An asset with ``maintained: True`` in its metadata gives the contributions of its days instead, which the
    statements in ``sql/<asset>/`` bring into the table; consumers get the whole table.

    Args:
        postgres: the database.
        engine: hands frames to consumers.
        schema: the schema of assets that name none.
    """

    def __init__(self, postgres: "Postgres", engine: "Engine", schema: str = "public") -> None:
        self._postgres = postgres
        self._engine = engine
        self._schema = schema

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Put the frame's rows in the place of the run's partitions."""
        metadata = context.definition_metadata
        table = self._table(context, metadata)
        shown: dict[str, Any] = {}
        with never_retried(), timed(shown, "writing"), self._postgres.transaction() as transaction:
            [(database,)] = transaction.fetch("select current_database()::text")
            part: Slice | None
            if metadata.get("maintained"):
                rows, together = self._contributions(context, obj)
                window = context.asset_partitions_time_window
                written = merge(transaction, table.name, window, rows, starts=_starts(context), together=together)
                part = None
            else:
                rows = _rows(context, obj.frames if isinstance(obj, PerPartition) else obj)
                part = _slice(context, metadata)
                written = replace_slice(transaction, table, part, rows, _starts(context))
            shown |= _preview(transaction, table, part)
        context.add_output_metadata({"dagster/table_name": f"{database}.{table}", **shown})
        if context.has_asset_partitions:
            for partition in context.asset_partition_keys:
                count = written.by_partition.get(partition, 0)
                more = obj.describe(partition, count) if isinstance(obj, PerPartition) else {}
                context.step_context.add_asset_metadata(
                    {"dagster/partition_row_count": count, **more},
                    asset_key=context.asset_key,
                    partition_key=partition,
                )
        else:
            context.add_output_metadata({"dagster/row_count": written.rows})
        context.log.info("%s: wrote %d rows", table, written.rows)

    def _contributions(
        self, context: dg.OutputContext, obj: Any
    ) -> "tuple[pa.RecordBatchReader, Callable[[], pa.RecordBatchReader] | None]":
        """The contributions of all days; and their sum, which is only worth the while for several days."""
        if not isinstance(obj, Contributions):
            return _rows(context, obj), None
        if len(obj.by_day) == 1:
            return _rows(context, obj.by_day), None
        folder = self._engine.new_scratch(context.asset_key.path[-1])
        connection = self._engine.connect()

        def kept(day: str, frame: Any) -> Any:
            """The day's contributions, read from where they are now kept until the sum is made."""
            file = folder / f"{day}.parquet"
            connection.from_arrow(to_reader(frame)).write_parquet(str(file))
            return connection.read_parquet(str(file))

        def together() -> "pa.RecordBatchReader":
            relation = connection.read_parquet(str(folder / "*.parquet"), hive_partitioning=False)
            return to_reader(obj.add_up(nw.from_native(relation)))

        return _rows(context, obj.by_day, kept), together

    def load_input(self, context: dg.InputContext) -> Any:
        """The consumer's partitions of the table (all of a maintained one), as the annotated type."""
        if context.upstream_output is None:
            raise ValueError("only the outputs of assets can be loaded from Postgres")
        metadata = context.upstream_output.definition_metadata
        table = self._table(context, metadata)
        columns = (context.definition_metadata or {}).get("columns")
        names = ", ".join(quote(column) for column in columns) if columns else "*"
        sql = f"select {names} from {table.sql}"
        annotation = context.dagster_type.typing_type
        with never_retried():
            if metadata.get("maintained"):
                with self._postgres.transaction() as transaction:
                    require_marts(transaction)
            there = self._columns(table)
            if metadata.get("maintained") or not (part := _slice(context, metadata)):
                return hand_over(self._spool(sql, table), annotation)
            if (each := per_partition(annotation)) is not None:
                return {
                    key: hand_over(self._spool(f"{sql} where {one.condition(there)}", table), each)
                    for key, one in _slices(context, part).items()
                }
            return hand_over(self._spool(f"{sql} where {part.condition(there)}", table), annotation)

    def _spool(self, sql: str, table: Table) -> "duckdb.DuckDBPyRelation":
        """The rows of a query as a relation that can be read more than once and holds no connection open."""
        file = self._engine.new_scratch(table.name) / f"{table.name}.parquet"
        connection = self._engine.connect()
        with self._postgres.query(sql) as reader:
            relation = connection.from_arrow(reader).project(", ".join(map(_column, reader.schema)))
            relation.write_parquet(str(file))
        return connection.read_parquet(str(file))

    def _columns(self, table: Table) -> list[str]:
        with self._postgres.transaction() as transaction:
            rows = transaction.fetch(
                f"select attname::text from pg_attribute where attrelid = to_regclass({literal(table.sql)})"
                " and attnum > 0 and not attisdropped"
            )
        if not rows:
            raise MissingTableError(
                f"the table {table} does not exist in the database of {self._postgres.database.variable}; "
                f"materialize the asset {table.name} first"
            )
        return [name for (name,) in rows]

    def _table(self, context: dg.OutputContext | dg.InputContext, metadata: Any) -> Table:
        *prefix, name = context.asset_key.path
        return Table(metadata.get("schema") or "_".join(prefix) or self._schema, name)


def _preview(transaction: "Transaction", table: Table, part: Slice | None) -> dict[str, Any]:
    """Some rows of a slice, or of the whole table."""
    columns = list(columns_of(transaction, table.sql))
    # As text: there may be columns of types the driver knows nothing of. A value may be megabytes long.
    names = ", ".join(f"left({quote(column)}::text, {PREVIEW_TEXT})" for column in columns)
    condition = part.condition(columns) if part else "true"
    rows = transaction.fetch(f"select {names} from {table.sql} where {condition} limit {PREVIEW_ROWS}")
    return preview(columns, [dict(zip(columns, row, strict=True)) for row in rows])


def _column(field: "pa.Field") -> str:
    """A column of a query, its decimals numbers again: ADBC gives them as text."""
    column = quote(field.name)
    metadata = field.metadata or {}
    modifier = int(metadata.get(b"POSTGRESQL:typmod", -1)) - 4
    precision, scale = modifier >> 16, modifier & 0x7FF
    # One of no stated scale, or of more digits than the engine has, stays the text it is: exact, if unhandy.
    if metadata.get(b"POSTGRESQL:type") != b"numeric" or not (0 < precision <= _ENGINE_DIGITS >= scale <= precision):
        return column
    return f"{column}::decimal({precision}, {scale}) as {column}"


def _slice(context: dg.OutputContext | dg.InputContext, metadata: Any) -> Slice | None:
    if not context.has_asset_partitions:
        return None
    expression = metadata.get("partition_expr")
    if not expression:
        raise ValueError(
            f"the partitioned asset {context.asset_key.to_user_string()} needs partition_expr in its metadata: "
            "the column or SQL expression that tells the partition of a row"
        )
    if isinstance(context.asset_partitions_def, dg.TimeWindowPartitionsDefinition):
        return Slice(expression, window=context.asset_partitions_time_window)
    return Slice(expression, keys=tuple(context.asset_partition_keys))


def _slices(context: dg.InputContext, part: Slice) -> dict[str, Slice]:
    """The slice of each partition of an input."""
    partitions = context.asset_partitions_def
    if not isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        return {key: Slice(part.expression, keys=(key,)) for key in context.asset_partition_keys}
    return {
        key: Slice(part.expression, window=partitions.time_window_for_partition_key(key))
        for key in context.asset_partition_keys
    }


def _rows(
    context: dg.OutputContext, obj: Any, look: Callable[[str, Any], Any] = lambda _, frame: frame
) -> "pa.RecordBatchReader":
    """The rows of a frame, or of a mapping from partition to frame: of those, one after the other.

    Args:
        context: of the output.
        obj: frame or mapping.
        look: gives what to read in place of a partition's frame, when its turn comes.
    """
    import pyarrow as pa

    if not isinstance(obj, Mapping):
        return to_reader(obj)
    asset = context.asset_key.to_user_string()
    if set(obj) != set(context.asset_partition_keys):
        raise ValueError(f"{asset} gave the partitions {sorted(obj)}, not those of the run")
    partitions = iter(obj.items())
    key, frame = next(partitions)
    first = to_reader(look(key, frame))

    def batches() -> "Iterator[pa.RecordBatch]":
        yield from first
        context.log.info("%s: %s is copied", asset, key)
        for partition, later in partitions:
            yield from to_reader(look(partition, later)).cast(first.schema)
            context.log.info("%s: %s is copied", asset, partition)

    return pa.RecordBatchReader.from_batches(first.schema, batches())


def _starts(context: dg.OutputContext) -> dict[str, datetime]:
    """When each partition of the run begins; none for partitions that are not of time."""
    if not context.has_asset_partitions:
        return {}
    partitions = context.asset_partitions_def
    if not isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        return {}
    return {key: partitions.time_window_for_partition_key(key).start for key in context.asset_partition_keys}
