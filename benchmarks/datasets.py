"""Data sets of who viewed what: read from files, or made up."""

import csv
import gzip
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FORMATS = ("auto", "events", "pairs", "msweb", "transactions")
_EXPECTED = {
    "events": "user,item,unix_timestamp",
    "pairs": "user item [count] [timestamp], as many of them as in the first line",
}


class MalformedLineError(ValueError):
    """A line is not of the format of its file."""


class Line(NamedTuple):
    """A line of a file, which is not blank.

    Attributes:
        path: the file.
        number: from 1.
        text: without the blanks around it.
    """

    path: Path
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Views:
    """A data set in codes, one entry a line of it; times in seconds."""

    user: NDArray[np.int64]
    page: NDArray[np.int64]
    count: NDArray[np.float64]
    time: NDArray[np.float64] | None = None

    def where(self, which: NDArray[np.bool_]) -> "Views":
        """Some of the entries, users and pages numbered as they are."""
        time = None if self.time is None else self.time[which]
        return Views(self.user[which], self.page[which], self.count[which], time)

    def chosen(self, which: NDArray[np.bool_]) -> "Views":
        """Some of the entries, users and pages numbered anew."""
        some = self.where(which)
        return Views(
            pd.factorize(some.user, sort=True)[0], pd.factorize(some.page, sort=True)[0], some.count, some.time
        )


def read(paths: list[Path], layout: str, columns: list[str] | None = None) -> Views:
    """Read one data set, or make one up.

    Args:
        paths: its files, or ``sequences`` or ``interests``.
        layout: one of ``FORMATS``.
        columns: of pairs, what follows user and item.

    Raises:
        MalformedLineError: a line is not of the format.
    """
    if [str(path) for path in paths] in (["sequences"], ["interests"]):
        return sequences() if str(paths[0]) == "sequences" else interests()
    files = [list(_lines(path)) for path in paths]
    lines = [line for file in files for line in file]
    if not lines:
        raise MalformedLineError(f"{paths[0]}: no line in it")
    layout = _layout([line.text for line in lines[:2000]]) if layout == "auto" and columns is None else layout
    if layout == "events":
        return _events(files)
    if layout in ("pairs", "auto"):
        return _pairs(files, columns)
    if layout == "msweb":
        # Its two files number their users alike, though they are not the same.
        views = [
            (f"{number} {user}", page)
            for number, file in enumerate(files)
            for user, page in _msweb(line.text for line in file)
        ]
        user, page = zip(*views, strict=True)
    else:
        items = [[item for item in line.text.split() if item not in {"-1", "-2"}] for line in lines]
        user = tuple(np.repeat(np.arange(len(items)), [len(item) for item in items]).tolist())
        page = tuple(item for line in items for item in line)
    return Views(_codes(user), _codes(page), np.ones(len(user)))


def sequences(n_users: int = 60_000, n_pages: int = 8000, steps: int = 9, onward: int = 5) -> Views:
    """Each page leads to a few others, the first of them most often; users follow, and some go back and forth."""
    rng = np.random.default_rng(0)
    following = rng.integers(0, n_pages, (n_pages, onward))
    here, pages = (n_pages * rng.random(n_users) ** 2).astype(np.int64), []
    for _ in range(steps):
        pages.append(here)
        here = following[here, np.minimum(rng.geometric(0.45, n_users) - 1, onward - 1)]
    begin = rng.random(n_users)
    return Views(
        np.tile(np.arange(n_users), steps),
        _codes(np.concatenate(pages).tolist()),
        rng.geometric(0.6, n_users * steps).astype(np.float64),
        np.concatenate([begin + 0.01 * step for step in range(steps)]),
    )


def interests(n_users: int = 40_000, n_pages: int = 10_000, n_views: int = 1_200_000, fields: int = 100) -> Views:
    """Half of all views are of the popular pages, the others of one's field, in which a page is viewed more often."""
    rng = np.random.default_rng(0)
    user = rng.choice(n_users, n_views, p=rng.dirichlet(np.full(n_users, 2.0)))
    field = rng.integers(0, fields, n_users)[user]
    is_own = rng.random(n_views) < 0.5
    rank = (n_pages ** rng.random(n_views)).astype(np.int64) - 1
    page = np.where(is_own, rank // fields * fields + field, rank) % n_pages
    count = rng.geometric(np.where(is_own, 0.4, 0.8)).astype(np.float64)
    return Views(_codes(user.tolist()), _codes(page.tolist()), count, rng.random(n_views))


def _lines(path: Path) -> Iterator[Line]:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    opener = gzip.open if is_gzip else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as content:
        for number, line in enumerate(content, start=1):
            if text := line.strip():
                yield Line(path, number, text)


def _layout(head: list[str]) -> str:
    if any(line.startswith('C,"') for line in head):
        return "msweb"
    if 2 * sum(_is_event(line) for line in head) >= len(head):
        return "events"
    widths = [len(line.replace(",", " ").split()) for line in head]
    usual = max(set(widths), key=widths.count)
    return "pairs" if usual in {2, 3, 4} and 10 * widths.count(usual) > 9 * len(widths) else "transactions"


def _is_event(line: str) -> bool:
    fields = next(csv.reader([line]))
    return len(fields) == 3 and _number(fields[2]) > 1e8


def _number(text: str) -> float:
    """A number; nan for what is none."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _events(files: list[list[Line]]) -> Views:
    user, page, time = [], [], []
    for file in files:
        for position, line in enumerate(file):
            fields = [field.strip() for field in next(csv.reader([line.text]))]
            when = _number(fields[2]) if len(fields) == 3 else math.nan
            if position == 0 and len(fields) == 3 and math.isnan(when):
                continue  # a header
            if math.isnan(when) or not fields[0] or not fields[1]:
                raise _malformed(line, "events")
            user.append(fields[0])
            page.append(fields[1])
            time.append(when)
    return Views(_codes(user), _codes(page), np.ones(len(user)), np.array(time, np.float64))


def _malformed(line: Line, layout: str) -> MalformedLineError:
    shown = line.text if len(line.text) <= 80 else line.text[:80] + "…"
    return MalformedLineError(f"{line.path}:{line.number}: expected {_EXPECTED[layout]}, found {shown!r}")


def _msweb(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    user = ""
    for line in lines:
        kind, *fields = line.split(",")
        if kind == "C":
            user = fields[1]
        elif kind == "V":
            yield user, fields[0]


def _pairs(files: list[list[Line]], columns: list[str] | None) -> Views:
    rows: list[list[str]] = []
    numbers: list[list[float]] = []
    width = 0
    for file in files:
        for position, line in enumerate(file):
            fields = line.text.replace(",", " ").split()
            values = [_number(field) for field in fields[2:]]
            if position == 0 and len(fields) >= 2 and any(map(math.isnan, values)):
                continue  # a header
            width = width or len(fields)
            if len(fields) != width or not 2 <= len(fields) <= 4 or any(map(math.isnan, values)):
                raise _malformed(line, "pairs")
            rows.append(fields[:2])
            numbers.append(values)
    table = np.array(numbers, np.float64).reshape(len(rows), -1)
    if columns is None:
        is_time = table.shape[1] == 1 and np.median(table[:, 0]) > 1e8
        columns = ["time"] if is_time else ["count", "time"][: table.shape[1]]
    given = {name: table[:, i] for i, name in enumerate(columns)}
    user, page = zip(*rows, strict=True) if rows else ((), ())
    return Views(_codes(user), _codes(page), given.get("count", np.ones(len(rows))), given.get("time"))


def _codes(labels: "Sequence[str] | Sequence[int]") -> NDArray[np.int64]:
    codes: NDArray[np.int64] = pd.factorize(pd.Series(labels), sort=True)[0]
    return codes


def capped(views: Views, users: int | None, pages: int | None) -> Views:
    """The most popular pages only, then a random choice of users (always the same)."""
    if pages is not None:
        order = np.argsort(-np.bincount(views.page), kind="stable")[:pages]
        views = views.chosen(np.isin(views.page, order))
    if users is not None and users <= views.user.max():
        kept = np.random.default_rng(0).permutation(views.user.max() + 1)[:users]
        views = views.chosen(np.isin(views.user, kept))
    return views
