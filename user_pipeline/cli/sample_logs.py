r"""Sample logs: the two feeds as a web application would leave them in a bucket, blemishes included.

The same arguments give the same bytes everywhere: of :mod:`random`, only what is documented never to
change is used, and compression is avoided. More days with otherwise the same arguments add objects to
those of fewer days and change none.

What is rare comes by counting rather than by chance, so that it is there in a small sample too:
duplicates inside and across objects, whole objects delivered twice, events late by days, objects that
hold several days, other environments, every way to write a timestamp, and lines of each kind that is
rejected.
"""

import hashlib
import struct
import zlib
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from itertools import accumulate, count
from random import Random

_SECTIONS = ("/", "/about/", "/cart/", "/search/?q=b%C3%BCcher&page=2", "/help/it's-here/")
_SECTION_SHARE = 0.08
_OWN_TASTE_SHARE = 0.85
_TASTES = 8  # groups of pages that the same people like: what a recommender can find
_PAGES_PER_TASTE = 50
_FIRST_NAMES = ("Ada", "Bruno", "Cheri", "Chloé", "Dmitri", "Esi", "Farid", "Grace", "Hiro", "Ines", "Łukasz")
_LAST_NAMES = (
    "Adeyemi",
    "Brown",
    "Castro",
    "D'Angelo",
    "Eriksson",
    "Fischer",
    "Gupta",
    "Honey",
    "Ito",
    "Øst",
)
_HEADER = b"updated_at,user_id,email,name,environment"


@dataclass(frozen=True, slots=True)
class SampleLogs:
    """What to generate.

    Attributes:
        days: how many days of events there are.
        users: how many people visit; their ids are 1 to ``users``.
        views_per_day: distinct page views a day, duplicates and broken lines not counted.
        start: the first day.
        seed: another seed gives other people with other habits.
    """

    days: int = 7
    users: int = 1_000
    views_per_day: int = 20_000
    start: date = date(2017, 4, 1)
    seed: int = 1

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """Each object's key and content, a day's worth in memory at a time."""
        identity = f"{self.users} {self.views_per_day} {self.start} {self.seed}"
        updates = _Feed("UserUpdates", "csv", identity, objects_per_day=2, header=_HEADER)
        views = _Feed("PageViews", "json", identity, objects_per_day=4)
        events = _page_views(self)
        for day in range(self.days):
            today = self.start + timedelta(days=day)
            yield from updates.deliver(day, _with_broken(_user_updates(self, day), _broken_updates(today), day))
            yield from views.deliver(day, _with_broken(next(events), _broken_views(today), day))
        yield from updates.deliver_rest(self.days)
        yield from views.deliver_rest(self.days)


@dataclass(slots=True)
class _Feed:
    """One feed's lines on their way into objects."""

    folder: str
    suffix: str
    identity: str
    objects_per_day: int
    header: bytes | None = None
    late: defaultdict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    lines: Iterator[int] = field(default_factory=count)
    delivered: Iterator[int] = field(default_factory=count)

    def deliver(self, day: int, lines: Sequence[bytes]) -> Iterator[tuple[str, bytes]]:
        """The objects that arrive on ``day``: most of its lines, and what is late from the days before."""
        arriving: list[bytes] = []
        for number, line in zip(self.lines, lines, strict=False):
            match number % 100:
                case 17 | 77:
                    self.late[day + 1 + number // 100 % 4].append(line)
                case 33:
                    arriving += [line, line]
                case 66:
                    arriving.append(line)
                    self.late[day + 1].append(line)
                case _:
                    arriving.append(line)
        arriving += self.late.pop(day, [])
        size = -(-len(arriving) // self.objects_per_day)
        for first in range(0, len(arriving), max(size, 1)):
            yield self._object(arriving[first : first + size])
        if day % 3 == 1:
            yield self._object(arriving[:size])

    def deliver_rest(self, days: int) -> Iterator[tuple[str, bytes]]:
        """One object of all that is still late after the last day."""
        rest = [line for day in sorted(self.late) for line in self.late[day]]
        if rest:
            yield f"{self.folder}/backlog/{self._name(f'after {days}')}.{self.suffix}.gz", _gzip(_text(rest))

    def _object(self, lines: Sequence[bytes]) -> tuple[str, bytes]:
        number = next(self.delivered)
        name = self._name(number)
        if self.header is not None and number % 3 == 1:
            lines = [self.header, *lines]
        key, content = (
            (f"{name}.{self.suffix}", _text(lines)),
            (f"web-{name[0]}/{name[1:3]}/{name}", _text(lines)),
            (f"{name}.log.gz", _gzip(_text(lines))),
            (f"replayed/part-{name}.{self.suffix}", _text(lines)),
        )[number % 4]
        return f"{self.folder}/{key}", content

    def _name(self, of: object) -> str:
        return hashlib.sha256(f"{self.identity} {self.folder} {of}".encode()).hexdigest()[:12]


def _text(lines: Sequence[bytes]) -> bytes:
    return b"\n".join(lines) + b"\n"


def _gzip(content: bytes) -> bytes:
    """A gzip file that stores without compressing: implementations of zlib compress differently."""
    parts = [b"\x1f\x8b\x08" + bytes(6) + b"\xff"]  # no file name, no time, no system
    for start in range(0, len(content), 0xFFFF):
        block = content[start : start + 0xFFFF]
        last = start + 0xFFFF >= len(content)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    return b"".join([*parts, struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)])


def _with_broken(lines: list[bytes], broken: list[bytes], day: int) -> list[bytes]:
    """Every kind of broken line on the first day, one more on each later day, among the others."""
    chosen = broken if day == 0 else [broken[day % len(broken)]]
    step = len(lines) // (len(chosen) + 1)
    for index, line in enumerate(chosen, start=1):
        lines.insert(index * step + index - 1, line)
    return lines


def _page_views(logs: SampleLogs) -> Iterator[list[bytes]]:
    """The page views of one day after the other."""
    random = Random(logs.seed).random  # noqa: S311 - nothing secret
    # A few people visit often and a few pages are visited often, both roughly by Zipf's law. Division
    # rounds alike everywhere, powers do not.
    people = sorted(range(1, logs.users + 1), key=lambda _: random())
    people_upto = list(accumulate(1 / (rank + 5) for rank in range(logs.users)))
    pages_upto = list(accumulate(1 / (rank + 1) for rank in range(_PAGES_PER_TASTE)))
    tastes = [int(random() * _TASTES) for _ in range(logs.users + 1)]
    # 37 and 997 share no factor: numbers that look arbitrary, all different.
    pages = [
        [f"/products/{(taste + page * _TASTES) * 37 % 997 + 1}/" for page in range(_PAGES_PER_TASTE)]
        for taste in range(_TASTES)
    ]
    for day in range(logs.days):
        midnight = datetime.combine(logs.start + timedelta(days=day), datetime.min.time())
        lines = []
        for number, second in enumerate(sorted(int(random() * 86_400) for _ in range(logs.views_per_day))):
            user = people[bisect(people_upto, random() * people_upto[-1])]
            kind = random()
            if kind < _SECTION_SHARE:
                url = _SECTIONS[int(random() * len(_SECTIONS))]
            else:
                taste = tastes[user] if kind < _OWN_TASTE_SHARE else int(random() * _TASTES)
                url = pages[taste][bisect(pages_upto, random() * pages_upto[-1])]
            lines.append(_page_view(number, midnight, second, url, user))
        yield lines


def _page_view(number: int, midnight: datetime, second: int, url: str, user: int) -> bytes:
    environment = {7: "staging", 27: "development"}.get(number % 40, "production")
    user_id, more = str(user), ""
    timestamp = f"{midnight:%Y-%m-%d}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
    match number % 50:
        case 1:
            timestamp += "Z"
        case 11:
            timestamp += f".{number * 7919 % 1_000_000:06}"
        case 21:
            local = (midnight + timedelta(seconds=second)).replace(tzinfo=UTC)
            timestamp = local.astimezone(timezone(timedelta(hours=2))).isoformat()
        case 31:
            user_id = f'"{user}"'
        case 41:
            more = ', "referrer": null, "device": {"os": "Linux", "touch": false}'
    return (
        f'{{"ts": "{timestamp}", "url": "{url}", "environment": "{environment}", "user_id": {user_id}{more}}}'
    ).encode()


def _user_updates(logs: SampleLogs, day: int) -> list[bytes]:
    """The user updates of one day, in order of time.

    One user in twenty never has any; the others appear in the course of the first five days, and change
    their e-mail address every 25 days.
    """
    midnight = datetime.combine(logs.start + timedelta(days=day), datetime.min.time())
    events: list[tuple[datetime, str, str, str, str]] = []
    for user in range(1, logs.users + 1):
        first_day = 1 + user % 4 if user % 5 in {3, 4} else 0
        changes = (user + day) % 25 == 0
        if user % 20 == 0 or day < first_day or not (day == first_day or changes):
            continue
        first, last = _FIRST_NAMES[user % len(_FIRST_NAMES)], _LAST_NAMES[user // 3 % len(_LAST_NAMES)]
        name = {3: f'{first} "Nick" {last}', 4: f"{first}\n{last}"}.get(user % 50, f"{first} {last}")
        handle = "".join(filter(str.isalpha, f"{first}{last}".encode("ascii", "ignore").decode().lower()))
        email = f"{handle}{user}@example.com" if day == first_day else f"{handle}{user}.{day}@example.org"
        time = midnight + timedelta(seconds=user * 7919 % 86_400)
        if user % 10 == 1:
            time += timedelta(microseconds=user * 7919 % 1_000_000)
        timestamp = time.isoformat() + ("" if user % 10 else "Z")
        events.append((time, timestamp, str(user), email, name))
        if changes and not user % 2:
            # Two addresses at the same instant: which is the latest must not depend on the order.
            events.append((time, timestamp, str(user), f"also.{email}", name))
    events.sort()
    return [
        _csv(*fields, {7: "staging", 17: "development"}.get(number % 40, "production"))
        for number, (_, *fields) in enumerate(events)
    ]


def _csv(*fields: str) -> bytes:
    return ",".join('"' + value.replace('"', '""') + '"' for value in fields).encode()


def _broken_updates(day: date) -> list[bytes]:
    """User updates that are no usable rows, for each reason, and a blank line."""
    ts = f"{day}T12:00:00"
    return [
        # malformed
        _csv(ts, "1", "too.few@example.com", "production"),
        _csv(ts, "1", "too.many@example.com", "Too Many", "production", "more"),
        f'"{ts}","1","bad.quoting@example.com","Bad"Quoting" ","production"'.encode(),
        f'"{ts}","1","not.utf8@example.com","Zo'.encode() + b'\xeb","production"',
        # invalid_timestamp
        _csv("yesterday", "1", "someone@example.com", "Some One", "production"),
        _csv("", "1", "someone@example.com", "Some One", "production"),
        # out_of_range
        _csv("1970-01-01T00:00:00", "1", "someone@example.com", "Some One", "production"),
        _csv("9999-12-31T00:00:00", "1", "someone@example.com", "Some One", "production"),
        # missing_user_id, invalid_user_id
        _csv(ts, "", "someone@example.com", "Some One", "production"),
        _csv(ts, "one", "someone@example.com", "Some One", "production"),
        _csv(ts, "9223372036854775808", "someone@example.com", "Some One", "production"),
        # invalid_email
        _csv(ts, "1", "no-at-sign.example.com", "Some One", "production"),
        # missing_environment
        _csv(ts, "1", "someone@example.com", "Some One", ""),
        b"",
    ]


def _broken_views(day: date) -> list[bytes]:
    """Page views that are no usable rows, for each reason, and a blank line."""
    ts = f'"ts": "{day}T12:00:00"'
    url, environment, user = '"url": "/products/1/"', '"environment": "production"', '"user_id": 1'
    objects = [
        # malformed: text of Postgres cannot hold NUL
        f'{ts}, "url": "/products/\\u0000/", {environment}, {user}',
        # invalid_timestamp
        f'"ts": "yesterday", {url}, {environment}, {user}',
        f'"ts": "2017-02-30T00:00:00", {url}, {environment}, {user}',
        f"{url}, {environment}, {user}",
        # out_of_range
        f'"ts": "1970-01-01T00:00:00", {url}, {environment}, {user}',
        f'"ts": "9999-12-31T00:00:00", {url}, {environment}, {user}',
        # missing_user_id
        f"{ts}, {url}, {environment}",
        f'{ts}, {url}, {environment}, "user_id": null',
        # invalid_user_id
        f'{ts}, {url}, {environment}, "user_id": "one"',
        f'{ts}, {url}, {environment}, "user_id": 1.5',
        f'{ts}, {url}, {environment}, "user_id": 9223372036854775808',
        # missing_url
        f"{ts}, {environment}, {user}",
        f'{ts}, "url": null, {environment}, {user}',
        # missing_environment
        f"{ts}, {url}, {user}",
    ]
    whole = [f"{{{fields}}}".encode() for fields in objects]
    # malformed: cut short, another thing altogether, not UTF-8
    return [*whole, whole[0][:40], b"502 Bad Gateway", whole[-1][:-1] + b', "note": "\xff"}', b""]
