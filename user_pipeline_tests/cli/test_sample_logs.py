import csv
import gzip
import hashlib
import io
import json
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache

import pytest

from user_pipeline.cli.sample_logs import SampleLogs

WEEK = SampleLogs(users=600, views_per_day=2_000)
COLUMNS = ["updated_at", "user_id", "email", "name", "environment"]
Row = dict[str, str]


@cache
def objects(logs: SampleLogs = WEEK) -> dict[str, bytes]:
    return dict(logs.objects())


def contents(feed: str, logs: SampleLogs = WEEK) -> dict[str, bytes]:
    return {
        key: gzip.decompress(content) if key.endswith(".gz") else content
        for key, content in objects(logs).items()
        if key.startswith(f"{feed}/")
    }


def when(value: object) -> datetime:
    time = datetime.fromisoformat(value if isinstance(value, str) else "nonsense")
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)


def reason(row: Row, required: str) -> str | None:  # noqa: PLR0911 - one for each reason
    """Why a parsed row cannot be used, straight from the description of the feeds."""
    try:
        day = when(row.get("ts", row.get("updated_at"))).date()
    except ValueError:
        return "invalid_timestamp"
    if not date(2017, 4, 1) <= day <= datetime.now(UTC).date() + timedelta(days=1):
        return "out_of_range"
    user_id = row.get("user_id")
    if user_id in (None, ""):
        return "missing_user_id"
    if not re.fullmatch(r"\d+", str(user_id)) or int(user_id) >= 2**63:
        return "invalid_user_id"
    if required == "url" and not row.get("url"):
        return "missing_url"
    if required == "email" and "@" not in row["email"]:
        return "invalid_email"
    return None if row.get("environment") else "missing_environment"


def page_views(content: bytes) -> Iterator[tuple[str | None, Row]]:
    for line in content.split(b"\n"):
        if not line:
            continue
        try:
            row = json.loads(line)
            assert "\0" not in row.get("url", "") if row.get("url") else True
        except (ValueError, AssertionError):
            yield "malformed", {}
        else:
            yield reason(row, "url"), row


def user_updates(content: bytes) -> Iterator[tuple[str | None, Row]]:
    text = content.decode(errors="surrogateescape")
    for fields in csv.reader(io.StringIO(text, newline=""), strict=False):
        if not fields or fields == COLUMNS:
            continue
        not_utf8 = any("\udc80" <= character <= "\udcff" for character in "".join(fields))
        if len(fields) != len(COLUMNS) or not_utf8:
            yield "malformed", {}
        else:
            row = dict(zip(COLUMNS, fields, strict=True))
            yield reason(row, "email"), row


PARSERS = {"PageViews": page_views, "UserUpdates": user_updates}


def good(feed: str) -> dict[str, list[Row]]:
    return {key: [row for why, row in PARSERS[feed](content) if why is None] for key, content in contents(feed).items()}


def test_the_same_arguments_give_the_same_bytes_on_every_machine() -> None:
    logs = SampleLogs(days=3, users=40, views_per_day=300, seed=5)
    random.seed("something else")
    digest = hashlib.sha256()
    for key, content in logs.objects():
        random.random()  # noqa: S311
        digest.update(key.encode() + content)
    assert digest.hexdigest() == "021603606da7ba58a47b36d401dcc52cd698f2f81f12963479bca4c0ad390121"
    code = (
        "import hashlib; from user_pipeline.cli.sample_logs import SampleLogs; d = hashlib.sha256();"
        "[d.update(k.encode() + c) for k, c in SampleLogs(3, 40, 300, seed=5).objects()];"
        "print(d.hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
        capture_output=True,
        check=True,
    )
    assert other.stdout.decode().strip() == digest.hexdigest()


def test_another_seed_gives_other_logs() -> None:
    assert objects(SampleLogs(2, 50, 100, seed=1)) != objects(SampleLogs(2, 50, 100, seed=2))


def test_more_days_add_objects_and_change_none() -> None:
    fewer, more = objects(SampleLogs(3, 50, 200)), objects(SampleLogs(5, 50, 200))
    assert {key: more[key] for key in fewer if "/backlog/" not in key}.items() <= fewer.items()
    assert not {key for key in fewer if "/backlog/" in key} & more.keys()


@pytest.mark.parametrize(("days", "users", "views"), [(1, 1, 0), (1, 1, 1), (2, 3, 7)])
def test_the_smallest_samples_work(days: int, users: int, views: int) -> None:
    assert objects(SampleLogs(days, users, views))


def test_names_say_nothing_about_dates_and_are_nested_and_some_are_gzipped() -> None:
    keys = list(objects())
    assert len(set(keys)) == len(keys)
    assert not [key for key in keys if re.search(r"2017|\d-\d|\.\.|//|/[._]", key)]
    for feed in PARSERS:
        ours = [key for key in keys if key.startswith(f"{feed}/")]
        assert {key.count("/") for key in ours} >= {1, 2, 3}
        assert any(key.endswith(".gz") for key in ours)


@pytest.mark.parametrize(("feed", "own_reasons"), [("PageViews", {"missing_url"}), ("UserUpdates", {"invalid_email"})])
def test_every_reason_to_reject_occurs_a_few_times(feed: str, own_reasons: set[str]) -> None:
    reasons = Counter(why for content in contents(feed).values() for why, _ in PARSERS[feed](content))
    usable = reasons.pop(None)
    assert reasons.keys() == own_reasons | {
        "malformed",
        "invalid_timestamp",
        "out_of_range",
        "missing_user_id",
        "invalid_user_id",
        "missing_environment",
    }
    if feed == "PageViews":
        assert reasons.total() < 0.05 * usable


@pytest.mark.parametrize("feed", ["PageViews", "UserUpdates"])
def test_there_are_duplicates_other_environments_and_objects_of_several_days(feed: str) -> None:
    places = defaultdict(list)
    days = defaultdict(set)
    environments: Counter[str] = Counter()
    for key, rows in good(feed).items():
        for row in rows:
            places[json.dumps(row)].append(key)
            days[key].add(when(row.get("ts", row.get("updated_at"))).date())
            environments[row["environment"]] += 1
    assert any(len(keys) > len(set(keys)) for keys in places.values()), "inside an object"
    assert any(len(set(keys)) > 1 for keys in places.values()), "across objects"
    assert environments.keys() == {"production", "staging", "development"}
    assert environments["production"] > 0.9 * environments.total()
    assert max(len(found) for found in days.values()) > 2
    late = max(max(found) - min(found) for found in days.values())
    assert late >= timedelta(days=3)
    assert set().union(*days.values()) == {date(2017, 4, day) for day in range(1, 8)}


def test_every_day_has_the_page_views_asked_for() -> None:
    events = {json.dumps(row) for rows in good("PageViews").values() for row in rows}
    per_day = Counter(when(json.loads(event)["ts"]).date() for event in events)
    assert all(0.99 * 2_000 < count <= 2_000 for count in per_day.values())


def test_timestamps_and_user_ids_come_in_every_form() -> None:
    rows = [row for rows in good("PageViews").values() for row in rows]
    forms = {re.sub(r"\d+", "0", row["ts"].split("T")[1]) for row in rows}
    assert forms == {"0:0:0", "0:0:0Z", "0:0:0.0", "0:0:0+0:0"}
    assert {type(row["user_id"]) for row in rows} == {int, str}
    assert any("device" in row for row in rows)


def test_users_change_their_address_have_odd_names_or_no_update_at_all() -> None:
    updates = [row for rows in good("UserUpdates").values() for row in rows]
    viewers = {int(row["user_id"]) for rows in good("PageViews").values() for row in rows}
    emails = defaultdict(set)
    at_once = defaultdict(set)
    for row in updates:
        emails[row["user_id"]].add(row["email"])
        at_once[row["user_id"], row["updated_at"]].add(row["email"])
    assert viewers - {int(user) for user in emails}
    assert any(len(addresses) > 1 for addresses in emails.values())
    assert any(len(addresses) > 1 for addresses in at_once.values()), "two at the same instant"
    assert {address.split("@")[1] for found in emails.values() for address in found} == {
        "example.com",
        "example.org",
    }
    names = {row["name"] for row in updates}
    assert any('"' in name for name in names)
    assert any("\n" in name for name in names)
    assert any(not name.isascii() for name in names)
    with_header = [content.startswith(b"updated_at,") for content in contents("UserUpdates").values()]
    assert True in with_header
    assert False in with_header


def test_people_have_tastes_that_a_recommender_can_find() -> None:
    visits: defaultdict[int, Counter[int]] = defaultdict(Counter)
    group = {f"/products/{page * 37 % 997 + 1}/": page % 8 for page in range(400)}
    pages: Counter[str] = Counter()
    for rows in good("PageViews").values():
        for row in rows:
            pages[row["url"]] += 1
            if row["url"] in group:
                visits[int(row["user_id"])][group[row["url"]]] += 1
    busy = [groups for groups in visits.values() if groups.total() >= 30]
    assert len(busy) > 20
    assert all(groups.most_common(1)[0][1] > 0.6 * groups.total() for groups in busy)
    assert pages.most_common(1)[0][1] > 20 * pages.most_common()[len(pages) // 2][1] / 2
