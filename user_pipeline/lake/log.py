"""The logs of a database: one immutable object a commit, from which the registry can be filled again.

``log/<database>/<version>-<random>.jsonl.gz`` is gzipped JSON lines. The first line is a header: ``format``,
``database``, ``version``, ``asset``, ``run_id``. Each other line has a ``kind`` and is what the commit wrote, such as
a partition with its files.

A log is written within its transaction, before the commit. A process that is killed in between leaves the log of a
commit that did not happen. That does no harm: its version is not used again, its files are complete, and the run that
is started again writes a later log.
"""

import gzip
import io
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from user_pipeline.lake.identity import FORMAT

if TYPE_CHECKING:
    from user_pipeline.resources.storage import ObjectStorage


@dataclass(frozen=True, slots=True)
class Log:
    """A log of a database.

    Attributes:
        version: the commit it tells of.
        path: where it is in the lake.
    """

    version: int
    path: str


def write_log(
    storage: "ObjectStorage", database: str, version: int, header: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]
) -> Log:
    """Store the log of a commit.

    Args:
        storage: has the lake.
        database: whose log it is: staging or analytics.
        version: of the commit.
        header: what else the first line says.
        lines: what the commit wrote; dates as text.
    """
    log = Log(version, f"{_folder(database)}{version:012d}-{uuid.uuid4().hex[:12]}.jsonl.gz")
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", compresslevel=6, mtime=0) as file:
        # There may be millions of lines: they are not collected first.
        for line in chain([{"format": FORMAT, "database": database, "version": version, **header}], lines):
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
    storage.lake.put(log.path, content.getvalue())
    return log


def logs(storage: "ObjectStorage", database: str) -> list[Log]:
    """The logs of a database, in the order of their commits."""
    folder = _folder(database)
    paths = [item["path"] for page in storage.lake.list(folder.rstrip("/"), chunk_size=10_000) for item in page]
    return sorted(
        (Log(int(path.removeprefix(folder).partition("-")[0]), path) for path in paths if path.endswith(".jsonl.gz")),
        key=lambda log: (log.version, log.path),
    )


def read_log(storage: "ObjectStorage", log: Log) -> Iterator[dict[str, Any]]:
    """The lines of a log, its header first."""
    with gzip.open(io.BytesIO(bytes(storage.lake.get(log.path).bytes())), "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def has_logs(storage: "ObjectStorage", database: str) -> bool:
    """Whether a database has committed to this lake before."""
    pages = storage.lake.list(_folder(database).rstrip("/"), chunk_size=1)
    return any(item["path"].endswith(".jsonl.gz") for page in pages for item in page)


def _folder(database: str) -> str:
    return f"log/{database}/"
