"""Files with the rows of a day, stored in the lake by the engine where it works."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.lake.parts import IntoLake
from user_pipeline.warehouse.tables import require_day

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.lake.partitions import LakeFile


@dataclass(frozen=True, slots=True)
class DayFiles:
    """Stores files of a day, and refuses rows of another one.

    Attributes:
        into: where they go.
        column: tells a row's day.
    """

    into: IntoLake
    column: str

    def __call__(self, engine: "Engine", file: Path, rows: int) -> "LakeFile":
        """Store a file.

        Raises:
            OutsidePartitionError: it has rows of another day.
        """
        require_day(file, self.column, self.into.day)
        return self.into(engine, file, rows)
