"""Any kind of frame in, the kind the consumer's annotation asks for out."""

import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import narwhals as nw

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

BATCH_ROWS = 100_000


def to_reader(frame: Any) -> "pa.RecordBatchReader":
    """Stream a frame's rows as Arrow batches.

    Args:
        frame: anything narwhals understands (pandas, Polars, PyArrow, DuckDB, PySpark, eager or lazy).

    Returns:
        a reader whose columns are of the plain types of :func:`plain_schema`.

    Raises:
        TypeError: it is no frame.
    """
    import pyarrow as pa

    try:
        wrapped = nw.from_native(frame)
    except TypeError as error:
        raise TypeError(
            f"an asset stored as a table must give a data frame that narwhals understands, not {type(frame).__name__}"
        ) from error
    if isinstance(wrapped, nw.LazyFrame):
        if wrapped.implementation.is_duckdb():
            reader = wrapped.to_native().to_arrow_reader(BATCH_ROWS)
        else:
            reader = wrapped.collect(backend="pyarrow").to_native().to_reader(BATCH_ROWS)
    else:
        reader = pa.RecordBatchReader.from_stream(wrapped)
    # pandas writes its index along when it is not the plain one.
    kept = [name for name in reader.schema.names if not name.startswith("__index_level_")]
    if kept != reader.schema.names:
        schema = pa.schema([reader.schema.field(name) for name in kept])
        reader = pa.RecordBatchReader.from_batches(schema, (batch.select(kept) for batch in reader))
    return _decoded(reader).cast(plain_schema(reader.schema))


def _decoded(reader: "pa.RecordBatchReader") -> "pa.RecordBatchReader":
    """Polars' categories without their string views, which Arrow cannot take from a dictionary."""
    import pyarrow as pa
    import pyarrow.types as pt

    def is_view(kind: "pa.DataType") -> bool:
        return bool(pt.is_dictionary(kind) and pt.is_string_view(kind.value_type))

    def decode(column: "pa.Array") -> "pa.Array":
        if not is_view(column.type):
            return column
        return pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(pa.string())).dictionary_decode()

    if not any(is_view(kind) for kind in reader.schema.types):
        return reader
    schema = pa.schema(
        [pa.field(field.name, pa.string() if is_view(field.type) else field.type) for field in reader.schema]
    )
    batches = (pa.record_batch([decode(column) for column in batch], schema=schema) for batch in reader)
    return pa.RecordBatchReader.from_batches(schema, batches)


def plain_schema(schema: "pa.Schema") -> "pa.Schema":
    """A schema with one Arrow type for each kind of column, whichever library made it.

    Strings of any layout become ``string``, timestamps microseconds, unsigned integers signed ones of at
    least their range, untyped nulls ``string``; everything else stays.
    """
    import pyarrow as pa
    import pyarrow.types as pt

    def plain(kind: "pa.DataType") -> "pa.DataType":
        if pt.is_dictionary(kind):
            return plain(kind.value_type)
        if pt.is_large_string(kind) or pt.is_string_view(kind) or pt.is_null(kind):
            return pa.string()
        if pt.is_large_binary(kind) or pt.is_binary_view(kind):
            return pa.binary()
        if pt.is_timestamp(kind):
            return pa.timestamp("us", kind.tz)
        if pt.is_unsigned_integer(kind) or pt.is_int8(kind):
            return {1: pa.int16(), 2: pa.int32()}.get(kind.bit_width // 8, pa.int64())
        return kind

    return pa.schema([pa.field(field.name, plain(field.type)) for field in schema])


def hand_over(
    relation: "duckdb.DuckDBPyRelation",
    annotation: Any,
) -> Any:
    """Give a DuckDB relation as the type a consumer asks for.

    Args:
        relation: the rows, lazy.
        annotation: ``narwhals.LazyFrame`` (also the default when there is none), ``narwhals.DataFrame``,
            ``duckdb.DuckDBPyRelation``, ``pandas.DataFrame``, ``polars.DataFrame``, ``polars.LazyFrame``,
            ``pyarrow.Table`` or ``pyarrow.RecordBatchReader``.

    Raises:
        TypeError: none of these.
    """
    name = _full_name(annotation)
    if name not in _GIVE:
        raise TypeError(f"an input cannot be loaded as {name}; annotate it as one of {', '.join(sorted(_GIVE))}")
    return _GIVE[name](relation)


def per_partition(annotation: Any) -> Any | None:
    """What a consumer asks for of each partition that annotates its input ``dict[str, …]``; None for any other."""
    return typing.get_args(annotation)[1] if typing.get_origin(annotation) is dict else None


def _full_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation) or annotation
    if origin in (None, Any, typing.Any, type(None)):
        return "narwhals.LazyFrame"
    # Compared by name: the libraries a consumer does not use are not imported.
    return f"{origin.__module__.partition('.')[0].lstrip('_')}.{origin.__qualname__}"


_GIVE: dict[str, Callable[["duckdb.DuckDBPyRelation"], Any]] = {
    "narwhals.LazyFrame": nw.from_native,
    "narwhals.DataFrame": lambda relation: nw.from_native(relation.to_arrow_table(), eager_only=True),
    "duckdb.DuckDBPyRelation": lambda relation: relation,
    "pandas.DataFrame": lambda relation: relation.df(),
    "polars.DataFrame": lambda relation: relation.pl(),
    "polars.LazyFrame": lambda relation: relation.pl(lazy=True),
    "pyarrow.Table": lambda relation: relation.to_arrow_table(),
    "pyarrow.RecordBatchReader": lambda relation: relation.to_arrow_reader(BATCH_ROWS),
}
