"""Which rows of a table belong to which partition: by an SQL condition, or by their time while they pass."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from user_pipeline.resources.postgres import literal, quote

if TYPE_CHECKING:
    import pyarrow as pa

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a table that belongs to some partitions.

    Attributes:
        expression: the column or SQL expression that tells the partition of a row.
        window: first moment and end (exclusive) of a time slice.
        keys: the partition keys of any other slice.
    """

    expression: str
    window: tuple[datetime, datetime] | None = None
    keys: tuple[str, ...] = ()

    def sql(self, columns: Sequence[str]) -> str:
        """The expression as SQL, which quotes the name of a column."""
        return quote(self.expression) if self.expression in columns else f"({self.expression})"

    def condition(self, columns: Sequence[str]) -> str:
        """The SQL condition of a row in the slice."""
        expression = self.sql(columns)
        if self.window is None:
            return f"{expression} in ({', '.join(literal(key) for key in self.keys)})"
        # With its offset, which a column with a zone heeds and one without ignores.
        first, end = (moment.isoformat(sep=" ") for moment in self.window)
        return f"{expression} >= '{first}' and {expression} < '{end}'"

    def __str__(self) -> str:
        if self.window is None:
            return f"{self.expression} in {', '.join(self.keys)}"
        return f"{self.expression} from {self.window[0]:%Y-%m-%d %H:%M} to before {self.window[1]:%Y-%m-%d %H:%M}"


class Windows:
    """Tells rows by their time while they pass: how many belong to each partition of a slice, and to none.

    Attributes:
        part: the slice, a time window.
        outside: rows that lie outside it, and rows without a time.
    """

    def __init__(self, part: Slice, starts: Mapping[str, datetime]) -> None:
        assert part.window is not None  # noqa: S101 - see of()
        self.part = part
        self.outside = 0
        self._keys = sorted(starts, key=lambda key: starts[key])
        self._bounds = [*(starts[key] for key in self._keys), part.window[1]]
        self._counts = [0] * (len(self._bounds) + 1)

    @classmethod
    def of(cls, part: Slice | None, starts: Mapping[str, datetime], schema: "pa.Schema") -> "Windows | None":
        """None where the rows' partition is not told by a column of times."""
        import pyarrow.types as pt

        if part is None or part.window is None or part.expression not in schema.names:
            return None
        if not pt.is_timestamp(schema.field(part.expression).type):
            return None
        # In a zone whose clock is put back, an hour has two beginnings.
        windows = cls(part, starts or {"": part.window[0]})
        clock = windows._microseconds(schema.field(part.expression).type)
        return windows if clock == sorted(set(clock)) else None

    def watch(self, rows: "pa.RecordBatchReader") -> "pa.RecordBatchReader":
        """The same rows, counted as they are read."""
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(rows.schema, self._counted(rows))

    def _counted(self, rows: "pa.RecordBatchReader") -> "Iterator[pa.RecordBatch]":
        import numpy as np
        import pyarrow as pa

        position = rows.schema.get_field_index(self.part.expression)
        bounds = self._microseconds(rows.schema.field(position).type)
        for batch in rows:
            times = batch.column(position).drop_null().cast(pa.int64()).to_numpy(zero_copy_only=False)
            found = np.bincount(np.searchsorted(bounds, times, side="right"), minlength=len(self._counts))
            self._counts = [before + int(now) for before, now in zip(self._counts, found, strict=True)]
            self.outside += batch.num_rows - len(times) + int(found[0] + found[-1])
            yield batch

    def _microseconds(self, kind: "pa.DataType") -> list[int]:
        """The bounds as a column of this type counts: a column without a zone heeds only what the clock says."""
        moments = self._bounds if kind.tz else [moment.replace(tzinfo=UTC) for moment in self._bounds]
        return [round((moment - _EPOCH) / timedelta(microseconds=1)) for moment in moments]

    def counts(self) -> dict[str, int]:
        """Rows by partition key."""
        return dict(zip(self._keys, self._counts[1:-1], strict=True))
