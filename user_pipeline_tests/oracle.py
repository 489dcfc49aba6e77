"""What the tables must be, worked out from the log lines in plain Python: slow, short, and of no shared code."""

import csv
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any, NamedTuple

import numpy as np


class View(NamedTuple):
    ts: datetime
    url: str
    environment: str
    user_id: int


class Update(NamedTuple):
    updated_at: datetime
    user_id: int
    email: str
    name: str
    environment: str


def read_views(content: bytes) -> list[View]:
    """The usable page views of an object."""
    views = []
    for line in content.decode().splitlines():
        try:
            fields = json.loads(line)
            ts, user_id = _moment(fields["ts"]), fields["user_id"]
            if isinstance(user_id, bool) or not re.fullmatch(r"[0-9]+", str(user_id)):
                continue
            url, environment = fields["url"], fields["environment"]
            if isinstance(url, str) and isinstance(environment, str) and url and environment:
                views.append(View(ts, url, environment, int(user_id)))
        except (ValueError, KeyError, TypeError):
            continue
    return views


def read_updates(content: bytes) -> list[Update]:
    """The usable user updates of an object; its lines are well-formed CSV, of five fields or, all of them, of more."""
    updates = []
    records = [fields for fields in csv.reader(io.StringIO(content.decode(), newline="")) if fields]
    width = 5
    for more, count in Counter(map(len, records)).items():
        if more > 5 and count > len(records) / 2:
            width = more
    for fields in records:
        try:
            if len(fields) != width:
                continue
            updated_at, user_id, email, name, environment = fields[:5]
            if re.fullmatch(r"[^@ ]+@[^@ ]+", email) and environment:
                updates.append(Update(_moment(updated_at), int(user_id), email, name, environment))
        except ValueError:
            continue
    return updates


def _moment(text: Any) -> datetime:
    if not isinstance(text, str) or "T" not in text:
        raise ValueError(text)
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def page_views(objects: Mapping[str, bytes], day: date) -> set[View]:
    return {
        view
        for content in objects.values()
        for view in read_views(content)
        if view.ts.date() == day and view.environment == "production"
    }


def user_updates(objects: Mapping[str, bytes], day: date) -> set[Update]:
    return {
        update
        for content in objects.values()
        for update in read_updates(content)
        if update.updated_at.date() == day and update.environment == "production"
    }


def users(updates: Iterable[Update]) -> list[tuple[int, str, str, datetime]]:
    latest: dict[int, Update] = {}
    for update in updates:
        best = latest.get(update.user_id)
        order = (update.updated_at, update.email, update.name)
        if best is None or order > (best.updated_at, best.email, best.name):
            latest[update.user_id] = update
    return sorted((u.user_id, u.email, u.name, u.updated_at) for u in latest.values())


def user_page_views(
    views: Iterable[View], updates: Iterable[Update]
) -> list[tuple[int, str | None, str, int, datetime]]:
    emails = {user_id: email for user_id, email, _, _ in users(updates)}
    seen: dict[tuple[int, str], list[datetime]] = defaultdict(list)
    for view in views:
        seen[view.user_id, view.url].append(view.ts)
    return sorted(
        ((user_id, emails.get(user_id), url, len(ts), max(ts)) for (user_id, url), ts in seen.items()),
        key=repr,
    )


class Served(NamedTuple):
    """What recommendations must be as of the end of a day."""

    pages: list[str]
    seen: dict[int, set[str]]
    popularity: dict[str, int]
    scores: dict[tuple[int, str], float]

    def ranked(self, user: int) -> list[str]:
        """The user's unseen pages, best first; at most three of them are recommended."""
        unseen = [url for url in self.pages if url not in self.seen[user]]
        return sorted(unseen, key=lambda url: (-self.scores[user, url], *self._popularity(url)))

    def most_popular(self, user: int) -> list[str]:
        return sorted((url for url in self.pages if url not in self.seen[user]), key=self._popularity)

    def _popularity(self, url: str) -> tuple[int, bytes]:
        return -self.popularity[url], url.encode()


def recommendations(
    views: Iterable[View], last: date, days: int, regularisation: float, *, min_viewers: int = 1, allowed: str = ""
) -> Served:
    """EASE^R by a dense inverse; scores are rounded, and those that are not positive count as 0."""
    views = [view for view in views if view.ts.date() <= last]
    window = {(view.user_id, view.url) for view in views if (last - view.ts.date()).days < days}
    users = sorted({user for user, _ in window})
    viewers = Counter(url for _, url in window)
    pages = sorted(url for url, n in viewers.items() if n >= min_viewers and re.search(allowed, url))
    x = np.array([[(user, url) in window for url in pages] for user in users], np.float64)
    scores: dict[tuple[int, str], float] = {}
    if users and pages:
        inverse = np.linalg.inv(x.T @ x + regularisation * np.eye(len(pages)))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
        found = x @ weights
        scores = {
            (user, url): max(0.0, round(float(found[i, j]), 4))
            for i, user in enumerate(users)
            for j, url in enumerate(pages)
        }
    return Served(
        pages=pages,
        seen={user: {view.url for view in views if view.user_id == user} for user in users},
        popularity={url: sum(page == url for _, page in window) for url in pages},
        scores=scores,
    )


def new_page_views(views: Iterable[View], day: date) -> set[tuple[int, str]]:
    """Pairs viewed on a day and on no day before."""
    views = list(views)
    on_day = {(view.user_id, view.url) for view in views if view.ts.date() == day}
    return on_day - {(view.user_id, view.url) for view in views if view.ts.date() < day}
