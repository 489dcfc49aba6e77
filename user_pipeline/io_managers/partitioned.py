"""What partitioned assets return: a value for each partition, computed before anything is stored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg

from user_pipeline.lake.partitions import LakeFile
from user_pipeline.lake.parts import Part

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class File:
    """The file of a partition.

    Attributes:
        path: where it is, below the scratch directory of the run; it is removed once it is stored.
        stored: files of the lake, not registered yet, that have its rows already; nothing is at ``path`` then.
        rows: rows in it, where it has rows.
        metadata: further metadata of the partition's materialization.
    """

    path: Path
    stored: Sequence[LakeFile] = field(default=(), kw_only=True)
    rows: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> Sequence[Part]:
        """The files that have its rows."""
        return self.stored or [self.path]


class Partitioned(Mapping[str, T]):
    """The values of some partitions, by their keys, in their order."""

    def __init__(self, values: Mapping[str, T]) -> None:
        self._values = dict(values)

    def __getitem__(self, partition: str) -> T:
        return self._values[partition]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


PARTITIONED = dg.PythonObjectDagsterType(Partitioned)
"""The ``dagster_type`` of assets that return one: Dagster does not accept a generic type as an annotation."""
