"""Reading objects: every line becomes a row or a reject with its reason, and nothing is read twice."""

import gzip
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from obstore.exceptions import GenericError, PermissionDeniedError

from user_pipeline.ingest import batch as one_batch
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES
from user_pipeline.ingest.lines import cut
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.ingest.reader import UnreadObjectsError
from user_pipeline_tests.ingest.reading import NOW, Read, ingest, manifest_of, rows
from user_pipeline_tests.platform import Platform, update, view

GOOD = '{"ts": "2017-04-01T10:00:00", "url": "/a", "environment": "production", "user_id": 1}'


def reasons(platform: Platform) -> dict[int, str]:
    """Rejected lines of the only object: reason by line number."""
    return dict(platform.rows("staging", "select source_line, reason from rejected_lines order by 1"))


def changed(**changes: Any) -> Mapping[str, Any]:
    fields = {"ts": "2017-04-01T10:00:00", "url": "/a", "environment": "production", "user_id": 1} | changes
    return {name: value for name, value in fields.items() if value is not ...}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "malformed"),
        ('{"ts": ', "malformed"),
        ("[1, 2]", "malformed"),
        ('"text"', "malformed"),
        ("null", "malformed"),
        (GOOD + GOOD, "malformed"),
        (GOOD[:-1] + ",}", "malformed"),
        (GOOD[:-1] + ', "x": NaN}', "malformed"),
        (GOOD[:-1] + ', "x": -Infinity}', "malformed"),
        (GOOD[:-1] + ', "x": "\t"}', "malformed"),
        (GOOD[:-1] + ', "x": "\\ud800"}', "malformed"),
        (changed(url="a\0b"), "malformed"),
        (changed(environment="production\0"), "malformed"),
        (changed(ts=...), "invalid_timestamp"),
        (changed(ts=None), "invalid_timestamp"),
        (changed(ts=""), "invalid_timestamp"),
        (changed(ts="yesterday"), "invalid_timestamp"),
        (changed(ts="2017-04-31T10:00:00"), "invalid_timestamp"),
        (changed(ts="2017-04-01T24:00:00"), "invalid_timestamp"),
        (changed(ts="2017-04-01T10:61:00"), "invalid_timestamp"),
        (changed(ts="2017-04-01"), "invalid_timestamp"),
        (changed(ts=1491040800), "invalid_timestamp"),
        (changed(ts={"at": "2017-04-01T10:00:00"}), "invalid_timestamp"),
        (changed(ts="2017-03-31T23:59:59.999999"), "out_of_range"),
        (changed(ts="2017-04-01T01:00:00+02:00"), "out_of_range"),
        (changed(ts="2017-05-03T00:00:00"), "out_of_range"),
        (changed(ts="9999-12-31T23:59:59"), "out_of_range"),
        (changed(user_id=...), "missing_user_id"),
        (changed(user_id=None), "missing_user_id"),
        (changed(user_id=""), "missing_user_id"),
        (changed(user_id=2**63), "invalid_user_id"),
        (changed(user_id=10**30), "invalid_user_id"),
        (changed(user_id=-1), "invalid_user_id"),
        (changed(user_id=1.0), "invalid_user_id"),
        (changed(user_id=True), "invalid_user_id"),
        (changed(user_id="1e3"), "invalid_user_id"),
        (changed(user_id=" 1"), "invalid_user_id"),
        (changed(user_id="٣"), "invalid_user_id"),
        (changed(user_id=[1]), "invalid_user_id"),
        (changed(url=...), "missing_url"),
        (changed(url=None), "missing_url"),
        (changed(url=" "), "missing_url"),
        (changed(url=5), "missing_url"),
        (changed(url={"path": "/a"}), "missing_url"),
        (changed(url=True), "missing_url"),
        (changed(environment=...), "missing_environment"),
        (changed(environment=""), "missing_environment"),
        (changed(environment=["production"]), "missing_environment"),
    ],
)
def test_an_unusable_page_view_is_rejected_with_its_reason(
    platform: Platform, line: str | Mapping[str, Any], reason: str
) -> None:
    platform.put_views("PageViews/x", [GOOD, line, GOOD])
    [entry] = ingest(platform, PAGE_VIEWS).entries
    assert reasons(platform) == {2: reason}
    assert (entry.lines, entry.rows, entry.rejected, entry.unaccounted) == (3, 2, {reason: 1}, 0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"ts": "2017-04-01T10:00:00.123456789Z"}, {"ts": datetime(2017, 4, 1, 10, 0, 0, 123456)}),
        ({"ts": "2017-04-02T01:00:00+02:00"}, {"ts": datetime(2017, 4, 1, 23)}),
        ({"ts": "2017-04-01 10:00"}, {"ts": datetime(2017, 4, 1, 10)}),
        ({"ts": "2017-03-31T23:00:00-0130"}, {"ts": datetime(2017, 4, 1, 0, 30)}),
        ({"user_id": "0042"}, {"user_id": 42}),
        ({"user_id": 2**63 - 1}, {"user_id": 2**63 - 1}),
        ({"url": "/ü😀;'\"\\\n"}, {"url": "/ü😀;'\"\\\n"}),
        ({"url": "true"}, {"url": "true"}),
        ({"url": '{"a": 1}'}, {"url": '{"a": 1}'}),
        ({"environment": "test"}, {"environment": "test"}),
        ({"extra": {"nested": [1, {"ts": "x"}]}, "note": "a,}"}, {"url": "/a"}),
    ],
)
def test_a_usable_page_view_keeps_what_it_says(
    platform: Platform, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    platform.put_views("PageViews/x", [changed(**fields)])
    ingest(platform, PAGE_VIEWS)
    [row] = rows(platform, PAGE_VIEWS)
    assert {name: row[name] for name in expected} == expected
    assert (row["source_object"], row["source_line"]) == ("PageViews/x", 1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("one,two\n", "malformed"),
        (update("2017-04-01T00:00:00")[:-1] + ",more\n", "malformed"),
        ('"2017-04-01T00:00:00","1","a@x.org","Ann"x,"production"\n', "malformed"),
        ('"2017-04-01T00:00:00","1","a@x.org","A"nn","production"\n', "malformed"),
        ('"2017-04-01T00:00:00","1","a@x.org","Ann,production\n', "malformed"),
        (update("2017-04-01T00:00:00", name="A\0nn"), "malformed"),
        (",,,,\n", "invalid_timestamp"),
        (update("2017-04-01"), "invalid_timestamp"),
        (update("2016-04-01T00:00:00"), "out_of_range"),
        (update("2017-04-01T00:00:00", ""), "missing_user_id"),
        (update("2017-04-01T00:00:00", "x1"), "invalid_user_id"),
        (update("2017-04-01T00:00:00", 2**63), "invalid_user_id"),
        (update("2017-04-01T00:00:00", email=""), "invalid_email"),
        (update("2017-04-01T00:00:00", email="a b@x.org"), "invalid_email"),
        (update("2017-04-01T00:00:00", email="a@x.org\n"), "invalid_email"),
        (update("2017-04-01T00:00:00", environment=""), "missing_environment"),
    ],
)
def test_an_unusable_user_update_is_rejected_with_its_reason(platform: Platform, line: str, reason: str) -> None:
    good = update("2017-04-01T00:00:00", 7)
    platform.put("UserUpdates/x", good + line + good)
    [entry] = ingest(platform, USER_UPDATES).entries
    assert reasons(platform) == {2: reason}
    assert (entry.rows, entry.rejected, entry.unaccounted) == (2, {reason: 1}, 0)


@pytest.mark.parametrize("name", ['A "nn"', "A\nnn", "A\r\n\n,nn", "", '"', "Ann,", "😀;'\\", '\n"\n'])
def test_a_quoted_name_may_hold_anything(platform: Platform, name: str) -> None:
    first, last = update("2017-04-01T00:00:00", 1), update("2017-04-01T00:00:00", 3)
    platform.put("UserUpdates/x", first + update("2017-04-01T00:00:00", 2, name=name) + last)
    [entry] = ingest(platform, USER_UPDATES).entries
    found = rows(platform, USER_UPDATES)
    assert [row["user_id"] for row in found] == [1, 2, 3]
    assert found[1]["name"] == name
    assert [row["source_line"] for row in found] == [1, 2, 3 + name.count("\n")]
    assert (entry.lines, entry.unaccounted) == (3, 0)


def test_unquoted_csv_is_read_too(platform: Platform) -> None:
    platform.put("UserUpdates/x", "2017-04-01T00:00:00,1,a@x.org,Ann Lee,production")
    ingest(platform, USER_UPDATES)
    [row] = rows(platform, USER_UPDATES)
    assert (row["user_id"], row["name"]) == (1, "Ann Lee")


def test_an_open_quote_costs_its_own_line_only(platform: Platform) -> None:
    good = update("2017-04-01T00:00:00", 1)
    broken = '"2017-04-01T00:00:00","1","a@x.org","Ann\n'
    platform.put("UserUpdates/x", good + broken + good * 3 + broken + good)
    [entry] = ingest(platform, USER_UPDATES).entries
    assert reasons(platform) == {2: "malformed", 6: "malformed"}
    assert (entry.rows, entry.unaccounted) == (5, 0)


def test_a_quoted_row_in_a_name_does_not_become_a_row(platform: Platform) -> None:
    forged = "x\n" + update("2017-04-01T00:00:00", 99, "evil@x.org", "Evil")
    platform.put("UserUpdates/x", update("2017-04-01T00:00:00", 1, name=forged))
    ingest(platform, USER_UPDATES)
    [row] = rows(platform, USER_UPDATES)
    assert (row["user_id"], row["name"]) == (1, forged)


@pytest.mark.parametrize(
    "header",
    [
        "updated_at,user_id,email,name,environment\n",
        '"Updated_At","user_id","email","name","environment"\r\n',
    ],
)
def test_a_header_counts_as_a_header_on_the_first_line_only(platform: Platform, header: str) -> None:
    good = update("2017-04-01T00:00:00")
    platform.put("UserUpdates/a", header + good)
    platform.put("UserUpdates/b", good + header)
    platform.put("UserUpdates/c", good)
    entries = {entry.key: entry for entry in ingest(platform, USER_UPDATES).entries}
    assert [entries[f"UserUpdates/{key}"].header for key in "abc"] == [1, 0, 0]
    assert entries["UserUpdates/b"].rejected == {"invalid_timestamp": 1}
    assert len(rows(platform, USER_UPDATES)) == 3


def test_crlf_byte_order_mark_and_blank_lines_change_nothing(platform: Platform) -> None:
    platform.put("PageViews/x", b"\xef\xbb\xbf" + f"{GOOD}\r\n\r\n  \n{GOOD}".encode())
    platform.put(
        "UserUpdates/x",
        b"\xef\xbb\xbf" + update("2017-04-01T00:00:00").replace("\n", "\r\n").encode() + b"\r\n",
    )
    [views] = ingest(platform, PAGE_VIEWS).entries
    [updates] = ingest(platform, USER_UPDATES).entries
    assert (views.lines, views.rows, views.blank, views.unaccounted) == (4, 2, 2, 0)
    assert (updates.lines, updates.rows, updates.blank, updates.unaccounted) == (2, 1, 1, 0)
    assert rows(platform, USER_UPDATES)[0]["environment"] == "production"


def test_a_line_that_is_not_utf8_is_rejected_alone_and_shown_in_escapes(platform: Platform) -> None:
    platform.put("PageViews/x", GOOD.encode() + b'\n{"url": "\xff\xfe"}\n' + GOOD.encode() + b"\n")
    [entry] = ingest(platform, PAGE_VIEWS).entries
    assert entry.rows == 2
    assert platform.rows("staging", "select source_line, reason, line from rejected_lines") == [
        (2, "malformed", '{"url": "\\xff\\xfe"}')
    ]


def test_a_nul_in_a_rejected_line_is_shown_as_an_escape(platform: Platform) -> None:
    platform.put("PageViews/x", b"a\0b\n")
    ingest(platform, PAGE_VIEWS)
    assert platform.rows("staging", "select line from rejected_lines") == [("a\\x00b",)]


def test_a_line_of_ten_megabytes_is_a_line(platform: Platform) -> None:
    long = "/" + "x" * 10_000_000
    platform.put_views("PageViews/x", [view("2017-04-01T00:00:00", long), GOOD, "y" * 10_000_000])
    [entry] = ingest(platform, PAGE_VIEWS).entries
    assert (entry.rows, entry.rejected) == (2, {"malformed": 1})
    assert rows(platform, PAGE_VIEWS)[0]["url"] == long


def test_a_line_longer_than_the_limit_is_rejected_and_the_next_one_read(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("user_pipeline.ingest.compression.BLOCK_BYTES", 1000)
    monkeypatch.setattr("user_pipeline.ingest.lines.MAX_LINE_BYTES", 70_000)
    platform.put_views("PageViews/x", [GOOD, "y" * 200_000, GOOD])
    [entry] = ingest(platform, PAGE_VIEWS).entries
    assert (entry.lines, entry.rows, entry.rejected) == (3, 2, {"malformed": 1})
    assert platform.rows("staging", "select source_line, line from rejected_lines") == [
        (2, "y" * 65_536 + "… [200001 bytes]")
    ]
    assert [row["source_line"] for row in rows(platform, PAGE_VIEWS)] == [1, 3]


@pytest.mark.parametrize("block", [3, 64, 1000])
def test_lines_do_not_depend_on_where_blocks_end(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("user_pipeline.ingest.compression.BLOCK_BYTES", block)
    names = ["A\nnn", "ü", 'x"\r\ny', "", "\n\n"]
    content = "".join(update("2017-04-01T00:00:00", n, name=name) for n, name in enumerate(names)).encode()
    platform.put("UserUpdates/x", b"\xef\xbb\xbf" + content + b'"open\n' + content)
    [entry] = ingest(platform, USER_UPDATES).entries
    assert [row["name"] for row in rows(platform, USER_UPDATES)] == names * 2
    assert (entry.lines, entry.rows, entry.rejects) == (11, 10, 1)


def test_gzip_is_told_by_content_and_may_have_several_members(platform: Platform) -> None:
    member = gzip.compress(f"{GOOD}\n".encode())
    platform.put("PageViews/two-members.gz", member + member)
    platform.put("PageViews/no-name", member)
    platform.put("PageViews/plain-despite-its-name.gz", GOOD)
    entries = ingest(platform, PAGE_VIEWS).entries
    assert {entry.key: entry.rows for entry in entries} == {
        "PageViews/two-members.gz": 2,
        "PageViews/no-name": 1,
        "PageViews/plain-despite-its-name.gz": 1,
    }


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-20], lambda c: c[:-1], lambda c: c[:-6] + b"xx" + c[-4:], lambda c: c[:1]]
)
def test_a_damaged_gzip_is_named_brings_nothing_and_is_read_again_when_it_changes(
    platform: Platform, damage: Any
) -> None:
    whole = gzip.compress(f"{GOOD}\n".encode() * 1000)
    platform.put("PageViews/a.gz", damage(whole))
    platform.put_views("PageViews/b", [GOOD, "broken"])
    first = ingest(platform, PAGE_VIEWS)
    assert [entry.key for entry in first.broken] == ["PageViews/a.gz"]
    assert first.broken[0].error
    assert len(rows(platform, PAGE_VIEWS)) == 1
    assert ingest(platform, PAGE_VIEWS).entries == []
    platform.put("PageViews/a.gz", whole)
    assert ingest(platform, PAGE_VIEWS).broken == []
    assert len(rows(platform, PAGE_VIEWS)) == 1001


def test_an_object_that_breaks_keeps_nothing_of_what_it_brought_before(platform: Platform) -> None:
    content = gzip.compress(f"{GOOD}\nbroken\n".encode())
    platform.put("PageViews/a.gz", content)
    ingest(platform, PAGE_VIEWS)
    platform.put("PageViews/a.gz", content[:-9])
    ingest(platform, PAGE_VIEWS)
    assert rows(platform, PAGE_VIEWS) == []
    assert reasons(platform) == {}


def test_empty_objects_missing_folders_hidden_names_and_folder_markers_are_no_trouble(
    platform: Platform,
) -> None:
    assert ingest(platform, PAGE_VIEWS).entries == []
    platform.put("PageViews/empty", "")
    platform.put("PageViews/empty.gz", "")
    platform.put_views("PageViews/.hidden", [GOOD])
    platform.put_views("PageViews/_SUCCESS", [GOOD])
    platform.put_views("PageViews/_tmp/part", [GOOD])
    platform.put_views("PageViewsOfOthers/x", [GOOD])
    ingested = ingest(platform, PAGE_VIEWS)
    assert {entry.key: entry.lines for entry in ingested.entries} == {
        "PageViews/empty": 0,
        "PageViews/empty.gz": 0,
    }


def test_each_object_is_read_once_and_again_when_it_changes(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD, "broken"])
    platform.put_views("PageViews/b", [GOOD])
    assert len(ingest(platform, PAGE_VIEWS).entries) == 2
    assert ingest(platform, PAGE_VIEWS).entries == []
    platform.put_views("PageViews/a", [view("2017-04-01T00:00:00", "/new")])
    assert [entry.key for entry in ingest(platform, PAGE_VIEWS).entries] == ["PageViews/a"]
    assert sorted(row["url"] for row in rows(platform, PAGE_VIEWS)) == ["/a", "/new"]
    assert reasons(platform) == {}


def test_objects_of_one_part_file_change_together(platform: Platform) -> None:
    for key in "abc":
        platform.put_views(f"PageViews/{key}", [GOOD, "broken"])
    ingest(platform)
    for key in "ab":
        platform.put_views(f"PageViews/{key}", [GOOD, GOOD, "broken"])
    assert len(ingest(platform).entries) == 2
    assert len(rows(platform)) == 5
    assert platform.rows("staging", "select count(*) from pipeline.replaced_files") == [(2,)]


def test_a_deleted_object_keeps_what_it_brought(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD])
    ingest(platform, PAGE_VIEWS)
    (platform.root / "source/PageViews/a").unlink()
    ingest(platform, PAGE_VIEWS)
    assert len(rows(platform, PAGE_VIEWS)) == 1


def test_lines_lost_to_a_later_start_date_come_back_with_an_earlier_one(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD])
    [entry] = ingest(platform, PAGE_VIEWS, start=date(2017, 4, 2)).entries
    assert entry.rejected == {"out_of_range": 1}
    [entry] = ingest(platform, PAGE_VIEWS, start=date(2017, 4, 1)).entries
    assert (entry.rejected, entry.rows) == ({}, 1)
    assert reasons(platform) == {}


def test_a_crash_before_the_commit_leaves_nothing_half_seen(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.put_views("PageViews/a", [GOOD, "broken"])

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "commit", crash)
        with pytest.raises(KeyboardInterrupt):
            ingest(platform, PAGE_VIEWS)
    assert platform.lake_files("raw/page_views") != []
    assert rows(platform, PAGE_VIEWS) == []
    ingest(platform, PAGE_VIEWS)
    assert len(rows(platform, PAGE_VIEWS)) == 1
    assert reasons(platform) == {2: "malformed"}


def test_two_readers_of_the_same_objects_do_no_harm(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    platform.put_views("PageViews/a", [GOOD, "broken"])
    commit = Manifest.commit

    def overtaken(self: Manifest, *arguments: Any, **options: Any) -> int:
        monkeypatch.setattr(Manifest, "commit", commit)
        platform.put_views("PageViews/b", [GOOD])
        ingest(platform, PAGE_VIEWS)  # another run, from beginning to end
        return commit(self, *arguments, **options)

    monkeypatch.setattr(Manifest, "commit", overtaken)
    ingest(platform, PAGE_VIEWS, alone=False)
    assert len(rows(platform, PAGE_VIEWS)) == 2
    assert reasons(platform) == {2: "malformed"}
    assert ingest(platform, PAGE_VIEWS).entries == []


def test_the_manifest_knows_which_days_changed_since_any_version(platform: Platform) -> None:
    first, second, third = date(2017, 4, 1), date(2017, 4, 2), date(2017, 4, 3)

    def changes(since: int = 0) -> dict[date, int]:
        return manifest_of(platform).changes(since)

    platform.put_views("PageViews/a", [changed(ts="2017-04-01T10:00:00"), changed(ts="2017-04-02T10:00:00")])
    platform.put_views("PageViews/b", [changed(ts="2017-04-02T10:00:00"), "broken"])
    ingest(platform, PAGE_VIEWS)
    assert changes() == {first: 1, second: 1}
    # Written anew with the same rows in another order of lines: line numbers are part of a row.
    platform.put_views("PageViews/b", ["broken", changed(ts="2017-04-02T10:00:00")])
    ingest(platform, PAGE_VIEWS)
    assert changes(1) == {second: 2}
    # The same bytes once more change nothing.
    platform.put_views("PageViews/b", ["broken", changed(ts="2017-04-02T10:00:00")])
    assert len(ingest(platform, PAGE_VIEWS).entries) == 1
    assert changes(2) == {}
    # A day an object brings no more has changed, and stays changed.
    platform.put_views("PageViews/a", [changed(ts="2017-04-03T10:00:00"), changed(ts="2017-04-02T10:00:00")])
    ingest(platform, PAGE_VIEWS)
    assert changes(3) == {first: 4, third: 4}
    platform.put_views("PageViews/a", [])
    ingest(platform, PAGE_VIEWS)
    assert changes(4) == {second: 5, third: 5}
    assert changes() == {first: 4, second: 5, third: 5}
    assert manifest_of(platform).rows([first, second, third]) == {
        first: 0,
        second: 1,
        third: 0,
    }


def test_equal_rows_on_two_lines_do_not_hide_a_change_of_both(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD, GOOD])
    ingest(platform, PAGE_VIEWS)
    other = changed(url="/b")
    platform.put_views("PageViews/a", [other, other])
    ingest(platform, PAGE_VIEWS)
    assert manifest_of(platform).changes() == {date(2017, 4, 1): 2}


class Failing:
    """A source that fails for some of its objects."""

    def __init__(self, store: Any, failures: Mapping[str, Exception]) -> None:
        self.store = store
        self.failures = failures
        self.asked: list[str] = []

    def get(self, key: str) -> Any:
        self.asked.append(key)
        if key in self.failures:
            raise self.failures[key]
        return self.store.get(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def ingest_from(source: Any, platform: Platform, now: datetime) -> Read:
    return ingest(platform, now=now, source=source)


def unknown(platform: Platform, now: datetime) -> int:
    """How many objects the sensor would have read at a moment."""
    with manifest_of(platform).look(platform.storage.source.list(PAGE_VIEWS.folder)) as look:
        return int(look.unknown(date(2017, 4, 1), now).read_all().num_rows)


def test_an_object_that_is_not_given_keeps_what_it_brought_and_is_tried_ever_later(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD, "broken"])
    ingest(platform, PAGE_VIEWS)
    platform.put_views("PageViews/a", [])
    source = Failing(platform.storage.source, {"PageViews/a": PermissionDeniedError("not for you\n\nDebug source: x")})
    now = NOW
    waits = []
    for attempt in range(1, 12):
        [entry] = ingest_from(source, platform, now).failing
        assert entry.failure is not None
        assert (entry.failure.attempts, entry.failure.error) == (attempt, "not for you")
        assert entry.failure.is_standing == (attempt >= 4)
        assert (entry.rows, entry.rejects) == (1, 1)
        waits.append((entry.failure.retry_at - now) // timedelta(hours=1))
        # A run tries anyway; nothing asks for one before its time.
        early = entry.failure.retry_at - timedelta(seconds=1)
        assert unknown(platform, early) == 0
        assert unknown(platform, entry.failure.retry_at) == 1
        now = entry.failure.retry_at
    assert waits == [0, 0, 0, 1, 2, 4, 8, 16, 24, 24, 24]
    assert len(rows(platform, PAGE_VIEWS)) == 1
    source.failures = {}
    [entry] = ingest_from(source, platform, now).entries
    assert (entry.failure, entry.rows, entry.rejects) == (None, 0, 0)


def test_a_store_that_goes_down_is_not_asked_for_every_object(platform: Platform) -> None:
    for number in range(20):
        platform.put_views(f"PageViews/{number:02}", [GOOD])
    down = {f"PageViews/{number:02}": GenericError("connection refused") for number in range(5, 20)}
    source = Failing(platform.storage.source, down)
    with pytest.raises(UnreadObjectsError, match=r"3 object.*PageViews/05: connection refused"):
        ingest_from(source, platform, NOW)
    assert len(source.asked) == 8
    assert len(rows(platform, PAGE_VIEWS)) == 5
    source.failures = {}
    assert len(ingest_from(source, platform, NOW).entries) == 15


def test_refused_objects_are_no_store_that_is_down(platform: Platform) -> None:
    for number in range(20):
        platform.put_views(f"PageViews/{number:02}", [GOOD])
    refused = {f"PageViews/{number:02}": PermissionDeniedError("no") for number in range(10)}
    assert len(ingest_from(Failing(platform.storage.source, refused), platform, NOW).failing) == 10
    assert len(rows(platform, PAGE_VIEWS)) == 10


def test_a_failure_does_not_undo_what_another_reader_has_read_meanwhile(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.put_views("PageViews/a", [GOOD])
    commit = Manifest.commit

    def overtaken(self: Manifest, *arguments: Any, **options: Any) -> int:
        monkeypatch.setattr(Manifest, "commit", commit)
        ingest(platform, PAGE_VIEWS)
        return commit(self, *arguments, **options)

    monkeypatch.setattr(Manifest, "commit", overtaken)
    source = Failing(platform.storage.source, {"PageViews/a": PermissionDeniedError("no")})
    assert ingest(platform, source=source, alone=False).failing == []
    assert len(rows(platform, PAGE_VIEWS)) == 1


def test_log_lines_name_objects_without_the_addresses_in_their_names(
    platform: Platform, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"PageViews/of/anna{number}%40example.com/berta@example.com.json" for number in range(4)]
    for key in keys:
        platform.put_views(key, [GOOD])
    gone = Failing(platform.storage.source, {keys[0]: FileNotFoundError(keys[0]), keys[1]: GenericError(keys[1])})
    ingest_from(gone, platform, NOW)
    platform.put_views(keys[2], [GOOD, GOOD])

    def rewritten(*arguments: Any, **options: Any) -> Any:
        yield from cut(*arguments, **options)
        platform.put_views(keys[2], [GOOD])

    monkeypatch.setattr(one_batch, "cut", rewritten)
    ingest(platform, PAGE_VIEWS)

    for what in ("was deleted before", "could not be fetched", "changed while it was read"):
        assert f"PageViews/of/***/*** {what}" in caplog.text
    down = Failing(platform.storage.source, dict.fromkeys(keys, GenericError("down")))
    for key in keys:
        platform.put_views(key, [GOOD, "broken"])
    with pytest.raises(UnreadObjectsError, match=r"PageViews/of/\*\*\*/\*\*\*: down") as raised:
        ingest_from(down, platform, NOW)
    for name in ("anna", "berta", "example"):
        assert name not in caplog.text
        assert name not in str(raised.value)
