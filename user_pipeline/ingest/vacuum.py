"""Remove what no catalog refers to any more: fragments and rejects of objects that were read again since."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from user_pipeline.ingest.feeds import Feed
from user_pipeline.ingest.manifest import Catalog

if TYPE_CHECKING:
    from user_pipeline.resources.object_store import Store

KEPT = timedelta(days=2)
"""A pass of the reader may still be going on, and older readers of the catalog too: longer than any run."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed.

    Attributes:
        objects: objects of the lake.
        size: their bytes.
    """

    objects: int
    size: int


def vacuum(lake: "Store", feed: Feed, now: datetime, *, kept: timedelta = KEPT) -> Removed:
    """Remove the batches of a feed that no object was last read in, and that were written some time ago.

    They come from objects that changed, and from passes that were cut off before they committed. Nothing that
    counts is ever removed: a batch's name is used once.

    Args:
        lake: where they are.
        feed: whose batches.
        now: the time of day.
        kept: what is younger than this stays.
    """
    # Listed first: what is written after the catalog was read is not in the listing.
    old = [(path, size) for path, written, size in _batches(lake, feed) if now - written > kept]
    current = set(Catalog.load(lake, feed).table["batch"].to_pylist())
    stale = [(path, size) for path, size in old if path.rpartition("/")[-1].removesuffix(".parquet") not in current]
    for start in range(0, len(stale), 1000):
        lake.delete([path for path, _ in stale[start : start + 1000]])
    return Removed(len(stale), sum(size for _, size in stale))


def _batches(lake: "Store", feed: Feed) -> Iterator[tuple[str, datetime, int]]:
    for folder in (f"fragments/{feed.name}", f"rejected/{feed.name}"):
        for page in lake.list(folder, chunk_size=10_000):
            for item in page:
                yield item["path"], item["last_modified"], item["size"]
