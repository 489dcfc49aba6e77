"""Splits and data sets of the benchmark, by hand."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets import MalformedLineError, Views, read
from benchmarks.splits import days_to_play, next_split, nextday_split
from user_pipeline.recommender.playback import choose

DAY = 86_400


def views_of(*entries: tuple[int, int, int]) -> Views:
    user, page, time = (np.array(column) for column in zip(*entries, strict=True))
    return Views(user, page, np.ones(len(user)), time.astype(np.float64))


def held_out(split_held_out: object) -> list[tuple[int, int]]:
    entries = split_held_out.tocoo()  # type: ignore[attr-defined]
    return sorted(zip(entries.row.tolist(), entries.col.tolist(), strict=True))


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
@pytest.mark.parametrize("header", ["", "user,item,timestamp\n", "who is it,what,when\n"])
def test_events_are_read_with_or_without_header_and_gzip(
    tmp_path: Path, header: str, packed: Callable[[bytes], bytes]
) -> None:
    content = f'{header}b,x,1500000000\n\na,"y,z",1500000001.5\nb,x,1500000002\n'.encode()
    file = tmp_path / "events"
    file.write_bytes(packed(content))
    views = read([file], "auto")
    assert (views.user.tolist(), views.page.tolist()) == ([1, 0, 1], [0, 1, 0])
    assert views.time is not None
    assert views.time.tolist() == [1500000000, 1500000001.5, 1500000002]


@pytest.mark.parametrize("line", ["a,x", "a,x,soon", "a,x,1,2", ",x,1500000000", "a,x,inf", "a"])
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "events.csv"
    file.write_text("user,item,time\n" + "a,x,1500000000\n" * 5 + f"\n{line}\n")
    with pytest.raises(MalformedLineError, match=r"events.csv:8: expected user,item,unix_timestamp, found"):
        read([file], "auto")


def test_a_malformed_line_of_pairs_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pairs"
    file.write_text("a x 1\n" * 20 + "a x\n")
    with pytest.raises(MalformedLineError, match=r"pairs:21: expected user item \[count\] \[timestamp\]"):
        read([file], "auto")


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "none").write_text("\n")
    with pytest.raises(MalformedLineError, match="none: no line in it"):
        read([tmp_path / "none"], "auto")


def test_the_last_new_pages_are_held_out_and_what_follows_them_is_dropped() -> None:
    # User 0 has six new pages, the last of which is one; user 1 too few events; user 2 sees nothing new at the end.
    entries = [(0, page, page) for page in range(6)] + [(0, 0, 9)] + [(1, page, page) for page in range(4)]
    entries += [(2, page, time) for time, page in enumerate([0, 1, 2, 1, 1])]
    split = next_split(views_of(*entries))
    assert held_out(split.held_out) == [(0, 5), (2, 2)]
    assert split.train.matrix.sum(axis=1).tolist() == [5, 4, 2]
    order = split.train.latest_first
    assert order is not None
    assert split.train.pages[order.indices[: order.indptr[1]]].tolist() == [4, 3, 2, 1, 0]


def test_a_day_is_played_back_as_the_product_does() -> None:
    entries = [
        (0, 0, 5),  # before the window, and viewed again on the day after: not new
        (0, 1, 95),
        (1, 2, 96),
        (1, 2, 100),
        (2, 4, 5),  # not active in the window
        (0, 0, 101),
        (0, 2, 101),
        (1, 2, 101),
        (1, 3, 101),
        (2, 3, 101),
        (0, 3, 102),
    ]
    views = views_of(*((user, page, day * DAY + 7) for user, page, day in entries))
    split = nextday_split(views, 100)
    assert split is not None
    assert held_out(split.held_out) == [(0, 2), (1, 3)]
    assert split.train.matrix.shape == (2, 2)
    assert sorted(split.train.pages.tolist()) == [1, 2]
    assert split.seen is not None
    assert list(zip(*(codes.tolist() for codes in split.seen), strict=True)) == [(0, 0)]
    assert split.discoveries is not None
    assert split.discoveries.tolist() == [0, 1, 1, 0, 0]
    assert split.recent is not None
    assert split.recent.tolist() == [0, 1, 1, 0, 0]
    assert split.past is not None
    assert choose(split.past, split.day).why == "too little past"
    assert nextday_split(views, 102) is None
    only = nextday_split(views, 100, min_viewers=2)
    assert only is not None
    assert only.train.pages.tolist() == []
    assert set(days_to_play(views, 9, 0.5, 1.0)) == {94, 95, 99, 100, 101}
