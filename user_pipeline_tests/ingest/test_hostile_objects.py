"""Objects and names that somebody made to do harm, or by accident: each is read or named, and no other one suffers."""

import gzip
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_pipeline import settings
from user_pipeline.defs.automation.alerts import message
from user_pipeline.defs.ingest.checks import no_broken_objects
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES, Feed
from user_pipeline.io_managers.metadata import preview
from user_pipeline.masking import mask, mask_emails, mask_key, shorten
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline.resources.postgres_errors import said
from user_pipeline.settings import Settings
from user_pipeline_tests.ingest import reading
from user_pipeline_tests.ingest.reading import Read, manifest_of
from user_pipeline_tests.platform import Platform, update, view
from user_pipeline_tests.s3 import Endpoint, s3_endpoint

DAY = date(2017, 4, 1)
GOOD = view("2017-04-01T10:00:00")
LINE = b'{"ts": "2017-04-01T10:00:00", "url": "/a", "environment": "production", "user_id": 1}\n'
TEN_MEGABYTES = 10 * 10**6


def ingest(platform: Platform, feed: Feed = PAGE_VIEWS, /, **limits: int) -> Read:
    return reading.ingest(platform, feed, limits=replace(platform.settings.object_limits, **limits))


def rows(platform: Platform, feed: Feed = PAGE_VIEWS) -> dict[str, int]:
    """How many rows each object has brought."""
    return {entry.key: entry.rows for entry in manifest_of(platform, feed).entries() if not entry.error}


def broken(platform: Platform, feed: Feed = PAGE_VIEWS) -> dict[str, str]:
    """What is said of each object that cannot be read."""
    return {entry.key: entry.error or "" for entry in manifest_of(platform, feed).unread()}


# One long value


@pytest.mark.parametrize(
    "text",
    [
        "x" * TEN_MEGABYTES,
        "%4" * (TEN_MEGABYTES // 2),
        "a@" * (TEN_MEGABYTES // 2),
        "@" * TEN_MEGABYTES,
        " @" * (TEN_MEGABYTES // 2),
        "<Token-1>" * (TEN_MEGABYTES // 9),
        "connection '" * (TEN_MEGABYTES // 12),
        "://x:" * (TEN_MEGABYTES // 5),
        "\\" * TEN_MEGABYTES,
        "`|" * (TEN_MEGABYTES // 2),
    ],
    ids=lambda text: text[:12],
)
def test_ten_megabytes_of_anything_are_masked_and_shown_in_linear_time(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quadratic time would be hours."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x" * 40)
    assert mask_emails(text)
    assert mask(text)
    assert mask_key(text)
    assert said(text) is not None
    assert len(shorten(text, 80)) <= 80
    assert len(preview(["url"], [{"url": text}] * 10)["preview"].value or "") < 10_000
    run = dg.DagsterRun(job_name="j", run_id="11111111-1111-1111-1111-111111111111")
    assert message(Settings.from_environment({}), run, "title", [text])["text"]


@given(st.text(st.sampled_from('aB@%40 "<>(),;:.\n'), max_size=30))
def test_addresses_are_masked_as_by_a_search_from_every_character(text: str) -> None:
    slow = re.compile(r"[^\s\"<>(),;:]+(?:@|%40)[^\s\"<>(),;:]+")
    assert mask_emails(text) == slow.sub("***", text)


def test_what_is_cut_off_does_not_uncover_an_address() -> None:
    text = "see " + "x" * 60 + "anna.smith@example.com for more"
    assert "anna" not in shorten(text, 80)
    assert shorten(text, 80) == "see *** for more"
    assert shorten("y" * 100, 80) == "y" * 79 + "…"


LONG_VIEWS: dict[str, tuple[dict[str, Any] | str, str | None]] = {
    "a url": (view("2017-04-01T10:00:00", "/" + "x" * TEN_MEGABYTES), None),
    "a url of addresses": (view("2017-04-01T10:00:00", "/" + "a@" * (TEN_MEGABYTES // 2)), None),
    "spaces": (view("2017-04-01T10:00:00", " " * TEN_MEGABYTES), "missing_url"),
    "digits": (view("2017-04-01T10:00:00", user_id="9" * TEN_MEGABYTES), "invalid_user_id"),
    "a fraction of a second": (view("2017-04-01T10:00:00." + "0" * TEN_MEGABYTES), None),
    "an environment": (view("2017-04-01T10:00:00", environment="p" * TEN_MEGABYTES), None),
    "nesting": ('{"x": ' + "[" * (TEN_MEGABYTES // 2) + "]" * (TEN_MEGABYTES // 2) + "}", "invalid_timestamp"),
    "open nesting": ("{" + '"x":{' * (TEN_MEGABYTES // 5), "malformed"),
    "quotes": ('{"x": "' + '\\"' * (TEN_MEGABYTES // 2) + '"}', "invalid_timestamp"),
    "white space before a bracket": ('{"x": [1,' + " " * TEN_MEGABYTES + "]}", "malformed"),
    "nan": ('{"x": "' + "nan," * (TEN_MEGABYTES // 4) + '"}', "invalid_timestamp"),
    "no JSON": ("x" * TEN_MEGABYTES, "malformed"),
}


@pytest.mark.parametrize("what", LONG_VIEWS)
def test_a_page_view_of_ten_megabytes_costs_no_more_than_its_size(platform: Platform, what: str) -> None:
    line, reason = LONG_VIEWS[what]
    platform.put_views("PageViews/long", [GOOD, line, GOOD])
    [entry] = ingest(platform).entries
    assert (entry.lines, entry.rejected) == (3, {reason: 1} if reason else {})


LONG_UPDATES = {
    "a name": (update("2017-04-01T10:00:00", name="x" * TEN_MEGABYTES), None),
    "quotes in a name": (update("2017-04-01T10:00:00", name='"' * (TEN_MEGABYTES // 2)), None),
    "an address": (update("2017-04-01T10:00:00", email="a" * TEN_MEGABYTES + "@x.org"), None),
    "no address": (update("2017-04-01T10:00:00", email="a." * (TEN_MEGABYTES // 2)), "invalid_email"),
    "domains": (update("2017-04-01T10:00:00", email="a@" + "a." * (TEN_MEGABYTES // 2)), "invalid_email"),
    "commas": ("," * TEN_MEGABYTES + "\n", "malformed"),
    "quotes": ('"' * TEN_MEGABYTES + "\n", "malformed"),
    "an open quote": ('"' + "x" * TEN_MEGABYTES + "\n", "malformed"),
    "empty fields": ('"",' * (TEN_MEGABYTES // 3) + "\n", "malformed"),
}


@pytest.mark.parametrize("what", LONG_UPDATES)
def test_a_user_update_of_ten_megabytes_costs_no_more_than_its_size(platform: Platform, what: str) -> None:
    line, reason = LONG_UPDATES[what]
    good = update("2017-04-01T00:00:00", 7)
    platform.put("UserUpdates/long", good + line + good)
    [entry] = ingest(platform, USER_UPDATES).entries
    assert (entry.lines, entry.rejected) == (3, {reason: 1} if reason else {})


def test_many_open_quotes_cost_no_more_than_their_size(platform: Platform) -> None:
    platform.put("UserUpdates/quotes", '"x\n' * (TEN_MEGABYTES // 3))
    # Not so many rejects as lines, which would take a minute to store.
    [entry] = ingest(platform, USER_UPDATES, rejects=TEN_MEGABYTES // 3 - 1).broken
    assert "USER_PIPELINE_MAX_OBJECT_REJECTS" in (entry.error or "")


def test_a_url_of_a_megabyte_goes_through_the_whole_pipeline_and_is_shown_cut(platform: Platform) -> None:
    long = "/" + "x" * 2**20
    other = "/" + "y@" * 2**19
    platform.put_views(
        "PageViews/long", [view("2017-04-01T10:00:00", url, user) for url in (long, other) for user in (1, 2)]
    )
    platform.put("UserUpdates/u", update("2017-04-01T00:00:00", 1))
    result = platform.materialize("2017-04-01")
    assert result.success
    assert platform.rows("analytics", "select length(url), count(*) from user_page_views group by 1") == [
        (len(long), 4)
    ]
    for event in result.get_asset_materialization_events():
        shown = event.materialization.metadata.get("preview")
        assert shown is None or len(str(shown.value)) < 10_000
    rerun = platform.materialize("2017-04-01")
    assert rerun.success


# Names in a bucket


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with s3_endpoint(monkeypatch, "source", "lake") as endpoint:
        yield endpoint


@pytest.fixture
def on_s3(
    s3: Endpoint, postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    locations = {"USER_PIPELINE_SOURCE_URL": "s3://source/web logs", "USER_PIPELINE_LAKE_URL": "s3://lake"}
    with Platform.create(postgres, tmp_path / "on s3", **locations) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        assert s3.url
        yield made


def deliver(s3: Endpoint, key: str, content: bytes = LINE) -> None:
    s3.client.put_object(Bucket="source", Key=f"web logs/{key}", Body=content)


ODD_KEYS = [
    "PageViews//a",
    "PageViews/b//c",
    "PageViews/./d",
    "PageViews/../e",
    "PageViews/..",
    "PageViews/tab\there",
    "PageViews/escape\x1b[31m",
    "PageViews/delete\x7f",
    "PageViews/bell\x07",
    "PageViews/return\r",
    "PageViews/next line\x85",
    "PageViews/folder with content/",
    "PageViews/two//",
    "PageViews/\u202etxt.exe",
    "PageViews/a b+c#?&%41~*|^`{}[]<>\"'\\",
]


def test_odd_keys_in_a_bucket_are_read_like_any_other(on_s3: Platform, s3: Endpoint) -> None:
    for key in ["PageViews/plain", *ODD_KEYS]:
        deliver(s3, key)
    for elsewhere in ("A//x", "/", "web logs//x", "web logs/PageViews2/../x", "\x1b"):
        s3.client.put_object(Bucket="source", Key=elsewhere, Body=b"broken")
        s3.client.put_object(Bucket="lake", Key=elsewhere, Body=b"broken")
    assert on_s3.materialize("2017-04-01").success
    assert rows(on_s3) == dict.fromkeys(["PageViews/plain", *ODD_KEYS], 1)
    assert broken(on_s3) == {}
    # Nothing is read again.
    assert ingest(on_s3).entries == []


def test_a_key_that_is_listed_and_not_given_is_named_and_tried_again(
    on_s3: Platform, s3: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(s3, "PageViews/a")
    deliver(s3, "PageViews//b")
    from user_pipeline.resources.bucket_source import BucketSource

    def gone(_: BucketSource, key: str) -> Any:
        raise FileNotFoundError(key)

    with monkeypatch.context() as patch:
        patch.setattr(BucketSource, "_get_odd", gone)
        [failing] = ingest(on_s3).failing
    assert failing.key == "PageViews//b"
    assert failing.failure is not None
    assert "lists it and says that there is no such key" in failing.failure.error
    assert rows(on_s3) == {"PageViews/a": 1, "PageViews//b": 0}
    [entry] = ingest(on_s3).entries
    assert (entry.key, entry.rows) == ("PageViews//b", 1)


def test_folder_markers_are_skipped_and_keep_no_object_out(on_s3: Platform, s3: Endpoint) -> None:
    deliver(s3, "PageViews/", b"")
    deliver(s3, "PageViews/2017", LINE)
    deliver(s3, "PageViews/2017/", b"")
    deliver(s3, "PageViews/2018/", b"")
    deliver(s3, "PageViews/2018/a", LINE)
    listing = on_s3.storage.source.list("PageViews").read_all()
    assert sorted(listing["path"].to_pylist()) == ["PageViews/2017", "PageViews/2018/a"]
    assert on_s3.materialize("2017-04-01").success
    assert rows(on_s3) == {"PageViews/2017": 1, "PageViews/2018/a": 1}
    with manifest_of(on_s3).look(on_s3.storage.source.list("PageViews")) as look:
        assert look.listed == 2
        assert look.unknown(DAY).read_all().num_rows == 0


def test_a_key_that_ends_in_a_slash_and_holds_something_is_an_object(on_s3: Platform, s3: Endpoint) -> None:
    deliver(s3, "PageViews/2017", LINE)
    deliver(s3, "PageViews/2017/", LINE * 2)
    ingest(on_s3)
    assert rows(on_s3) == {"PageViews/2017": 1, "PageViews/2017/": 2}


def test_a_prefix_that_no_object_can_be_written_below_is_refused() -> None:
    for url in ("s3://bucket/a//b", "s3://bucket/../b", "s3://bucket/a/./b"):
        with pytest.raises(settings.SettingsError, match="USER_PIPELINE_LAKE_URL"):
            Settings.from_environment({"USER_PIPELINE_LAKE_URL": url})


# Names in a directory


def test_odd_names_in_a_directory_are_read_like_any_other(platform: Platform) -> None:
    folder = platform.root / "source/PageViews"
    folder.mkdir()
    names = ["tab\there", "line\nend", "escape\x1b[31m", "delete\x7f", " ", "a\\xffb", "q\"'`|", "\u202etxt.exe"]
    for name in names:
        (folder / name).write_bytes(LINE)
    _make_deep(folder)
    raw = os.fsencode(folder) + b"/not utf-8 \xff\xfe"
    with open(raw, "wb") as file:  # noqa: PTH123 - a path of text cannot name it
        file.write(LINE)
    try:
        assert platform.materialize("2017-04-01").success
        assert ingest(platform).entries == []
    finally:
        # Python's rmtree, which cleans up after tests, calls itself for each level.
        subprocess.run(["rm", "-rf", folder / "d"], check=True)
    expected = [f"PageViews/{name}" for name in names]
    deepest = "PageViews/" + "d/" * _DEPTH + "leaf"
    assert rows(platform) == dict.fromkeys([*expected, "PageViews/not utf-8 \\xff\\xfe", deepest], 1)
    # What is shown of a name is one line.
    assert mask_key("PageViews/line\nend\x1b[31m\u202e") == "PageViews/line\\nend\\x1b[31m\\u202e"


_DEPTH = 1_200


def _make_deep(folder: Path) -> None:
    """Make a file below more folders than Python may call a function inside itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(_DEPTH):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    with os.fdopen(os.open("leaf", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor), "wb") as file:
        file.write(LINE)
    os.close(descriptor)


def test_two_names_that_look_alike_as_text_are_told_apart(platform: Platform) -> None:
    folder = platform.root / "source/PageViews"
    folder.mkdir()
    (folder / "\\xff").write_bytes(LINE)
    with open(os.fsencode(folder) + b"/\xff", "wb") as file:  # noqa: PTH123 - a path of text cannot name it
        file.write(LINE)
    ingested = ingest(platform)
    assert rows(platform) == {"PageViews/\\xff": 1}
    assert [entry.key for entry in ingested.broken] == ["PageViews/\\xff (not UTF-8)"]
    assert "rename it" in broken(platform)["PageViews/\\xff (not UTF-8)"]


def test_a_link_that_leads_out_of_the_source_is_not_followed_and_named(platform: Platform, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "shadow").write_bytes(b"root:secret\n" + LINE)
    platform.put_views("PageViews/a", [GOOD])
    folder = platform.root / "source/PageViews"
    (folder / "file").symlink_to(secret / "shadow")
    (folder / "folder").symlink_to(secret)
    (folder / "relative").symlink_to("../../secret/shadow")
    (folder / "via").symlink_to("file")
    first = ingest(platform)
    names = {f"PageViews/{name}" for name in ("file", "folder", "relative", "via")}
    assert {entry.key for entry in first.broken} == names
    assert all("leads out of the source directory" in problem for problem in broken(platform).values())
    assert rows(platform) == {"PageViews/a": 1}
    assert platform.table("staging", "rejected_lines") == []
    result = no_broken_objects(manifest_of(platform))
    assert not result.passed
    assert result.severity == dg.AssetCheckSeverity.WARN
    assert "PageViews/folder: it is a link that leads out of the source directory" in (result.description or "")
    # A link that took the place of a file after the listing leads nowhere either.
    with pytest.raises(PermissionError, match="leads out"):
        platform.storage.source.get("PageViews/file")
    # What was removed is not told of any more.
    for name in names:
        (platform.root / "source" / name).unlink()
    ingest(platform)
    assert broken(platform) == {}


def test_links_inside_the_source_are_followed_and_loops_are_not(platform: Platform) -> None:
    platform.put_views("PageViews/real/a", [GOOD])
    platform.put_views("archive/b", [GOOD, GOOD])
    folder = platform.root / "source/PageViews"
    (folder / "copy").symlink_to("real/a")
    (folder / "archive").symlink_to("../archive")
    (folder / "again").symlink_to("real")
    (folder / "real/loop").symlink_to("..")
    (folder / "self").symlink_to("self")
    (folder / "nowhere").symlink_to("missing")
    ingest(platform)
    assert rows(platform) == {"PageViews/real/a": 1, "PageViews/copy": 1, "PageViews/archive/b": 2}
    problems = broken(platform)
    assert set(problems) == {f"PageViews/{name}" for name in ("again", "real/loop", "self", "nowhere")}
    assert "a folder that is read already" in problems["PageViews/real/loop"]
    assert "leads nowhere" in problems["PageViews/self"]


def test_a_feed_folder_may_be_a_link_inside_the_source(platform: Platform) -> None:
    platform.put_views("2017/views/a", [GOOD])
    (platform.root / "source/PageViews").symlink_to("2017/views")
    ingest(platform)
    assert rows(platform) == {"PageViews/a": 1}


def test_what_is_no_file_is_named_and_holds_nobody_up(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD])
    os.mkfifo(platform.root / "source/PageViews/pipe")
    (platform.root / "source/UserUpdates").write_bytes(b"")
    ingest(platform)
    ingest(platform, USER_UPDATES)
    assert rows(platform) == {"PageViews/a": 1}
    assert broken(platform) == {"PageViews/pipe": "it is no regular file"}
    assert "cannot be listed as a folder" in broken(platform, USER_UPDATES)["UserUpdates"]
    with pytest.raises(OSError, match="no regular file"):
        platform.storage.source.get("PageViews/pipe")


def test_a_file_that_changed_since_its_content_was_asked_for_is_told(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD])
    source = platform.storage.source
    content = source.get("PageViews/a")
    assert not source.is_changed("PageViews/a", content.etag)
    platform.put_views("PageViews/a", [GOOD, GOOD])
    assert source.is_changed("PageViews/a", content.etag)
    (platform.root / "source/PageViews/a").unlink()
    assert source.is_changed("PageViews/a", content.etag)


# Bombs


def test_a_bomb_is_named_and_the_objects_beside_it_are_read(platform: Platform) -> None:
    platform.put("PageViews/newlines.gz", gzip.compress(b"\n" * 100 * 10**6))
    platform.put("PageViews/line.gz", gzip.compress(b"x" * 100 * 10**6))
    platform.put("PageViews/wide.gz", gzip.compress(LINE * 300_000))
    platform.put_views("PageViews/z", [GOOD])
    assert {entry.key for entry in ingest(platform).broken} == {
        "PageViews/newlines.gz", "PageViews/line.gz", "PageViews/wide.gz",
    }  # fmt: skip
    assert rows(platform) == {"PageViews/z": 1}
    for problem in broken(platform).values():
        assert "bytes become more than 200 times as many" in problem
        assert "USER_PIPELINE_MAX_COMPRESSION_RATIO" in problem
    assert ingest(platform).entries == []


@pytest.mark.parametrize(
    ("limits", "setting"),
    [
        ({"size": 1_000}, "USER_PIPELINE_MAX_OBJECT_SIZE allows, 1,000 bytes"),
        ({"lines": 10}, "USER_PIPELINE_MAX_OBJECT_LINES allows, 10"),
        ({"rejects": 10}, "USER_PIPELINE_MAX_OBJECT_REJECTS allows, 10"),
    ],
)
def test_an_object_past_a_limit_is_broken_and_names_the_setting(
    platform: Platform, limits: dict[str, int], setting: str
) -> None:
    platform.put_views("PageViews/a", [GOOD] * 10 + ["x"] * 100)
    platform.put_views("PageViews/b", [GOOD] * 5 + ["x"] * 5)
    [entry] = ingest(platform, **limits).broken
    assert (entry.key, entry.lines, entry.rejected) == ("PageViews/a", 0, {})
    assert setting in (entry.error or "")
    assert rows(platform) == {"PageViews/b": 5}
    assert platform.rows("staging", "select source_object, count(*) from rejected_lines group by 1") == [
        ("PageViews/b", 5)
    ]


def test_limits_count_what_is_at_them_as_within(platform: Platform) -> None:
    platform.put("PageViews/a", LINE * 9 + b"x\n")
    assert ingest(platform, size=len(LINE) * 9 + 2, lines=10, rejects=1).broken == []


def test_a_line_without_an_end_stops_at_the_limit(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("user_pipeline.ingest.lines.MAX_LINE_BYTES", 10_000)
    monkeypatch.setattr("user_pipeline.ingest.compression.BLOCK_BYTES", 1_000)
    platform.put("PageViews/a", b"x" * 1_000_000)
    [entry] = ingest(platform, size=100_000).broken
    assert "USER_PIPELINE_MAX_OBJECT_SIZE" in (entry.error or "")


def test_a_gzip_that_breaks_off_inside_a_long_line_is_broken_and_no_other(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("user_pipeline.ingest.lines.MAX_LINE_BYTES", 1_000)
    monkeypatch.setattr("user_pipeline.ingest.compression.BLOCK_BYTES", 1_000)
    platform.put("PageViews/a.gz", gzip.compress(os.urandom(50_000).replace(b"\n", b""))[:-10])
    platform.put_views("PageViews/b", [GOOD])
    assert [entry.key for entry in ingest(platform).broken] == ["PageViews/a.gz"]
    assert rows(platform) == {"PageViews/b": 1}


def test_objects_that_together_take_too_much_memory_are_read_one_by_one(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER_PIPELINE_MEMORY_LIMIT", "256MB")
    small = Settings.from_environment({**platform.environment, "USER_PIPELINE_MEMORY_LIMIT": "256MB"})
    platform = Platform(platform.root, platform.environment, small, platform.databases)
    long = "/" + "x" * (60 * 10**6)
    platform.put_views("PageViews/a", [view("2017-04-01T10:00:00", f"{long}{n}") for n in range(4)])
    platform.put_views("PageViews/b", [GOOD])
    platform.put_views("PageViews/z", [GOOD])
    [entry] = ingest(platform).broken
    assert entry.key == "PageViews/a"
    assert entry.error == "reading it takes more memory than USER_PIPELINE_MEMORY_LIMIT, 256,000,000 bytes, allows"
    assert rows(platform) == {"PageViews/b": 1, "PageViews/z": 1}
    assert ingest(platform).entries == []


def test_a_rejected_line_keeps_its_first_64_kib_and_its_size(platform: Platform) -> None:
    platform.put("PageViews/ascii", b"x" * 100_000 + b"\n")
    platform.put("PageViews/wide", ("ü€😀" * 20_000).encode() + b"\r\n")
    platform.put("PageViews/bytes", b"\xff" * 70_000 + b"\n")
    platform.put("PageViews/just", b"x" * 65_535 + b"\n")
    ingest(platform)
    lines = dict(platform.rows("staging", "select source_object, line from rejected_lines"))
    assert lines["PageViews/ascii"] == "x" * 65_536 + "… [100001 bytes]"
    text, _, size = lines["PageViews/wide"].rpartition("… [")
    assert size == "180002 bytes]"
    assert ("ü€😀" * 20_000).startswith(text)
    assert 65_533 <= len(text.encode()) <= 65_536
    assert lines["PageViews/bytes"] == "\\xff" * 65_536 + "… [70001 bytes]"
    assert lines["PageViews/just"] == "x" * 65_535


# What a line says


@pytest.mark.parametrize(
    ("ts", "expected"),
    [
        ("2017-04-02T10:00Z", datetime(2017, 4, 2, 10)),
        ("2017-04-02T10:00+02:00", datetime(2017, 4, 2, 8)),
        ("2017-04-02 10:00-0130", datetime(2017, 4, 2, 11, 30)),
        ("2017-04-02t10:00:00z", datetime(2017, 4, 2, 10)),
        ("2017-04-02t10:00z", datetime(2017, 4, 2, 10)),
        ("2017-04-02t10:00:00.5+02", datetime(2017, 4, 2, 8, 0, 0, 500_000)),
        ("2017-04-02T10:00", datetime(2017, 4, 2, 10)),
    ],
)
def test_timestamps_without_seconds_and_in_small_letters_are_taken(
    platform: Platform, ts: str, expected: datetime
) -> None:
    platform.put_views("PageViews/x", [view(ts)])
    platform.put("UserUpdates/x", update(ts))
    assert ingest(platform).entries[0].rejected == {}
    assert ingest(platform, USER_UPDATES).entries[0].rejected == {}
    assert platform.materialize("2017-04-02", checks=False).success
    assert platform.rows("staging", "select ts from page_views") == [(expected,)]
    assert platform.rows("staging", "select updated_at from user_updates") == [(expected,)]


@pytest.mark.parametrize("depth", [10, 100_000])
@pytest.mark.parametrize("text", ["plain", "nan", "banana, }", 'a \\"nan\\" b', "inf"])
def test_what_a_string_holds_decides_nothing_however_deep_the_line_is_nested(
    platform: Platform, depth: int, text: str
) -> None:
    nested = "[" * depth + "]" * depth
    line = f'{{"x": {nested}, "note": "{text}", ' + LINE.decode()[1:].rstrip()
    platform.put_views("PageViews/x", [line])
    [entry] = ingest(platform).entries
    assert (entry.rows, entry.rejected) == (1, {})


@pytest.mark.parametrize("blank", ["\t", "\u00a0", "\u3000", " \u2028 ", "\r\n", "\x0b\x0c\x85"])
def test_white_space_of_any_kind_is_no_url_and_no_environment(platform: Platform, blank: str) -> None:
    platform.put_views(
        "PageViews/x", [view("2017-04-01T10:00:00", blank), view("2017-04-01T10:00:00", environment=blank)]
    )
    platform.put("UserUpdates/x", update("2017-04-01T00:00:00", environment=blank))
    assert ingest(platform).entries[0].rejected == {"missing_url": 1, "missing_environment": 1}
    assert ingest(platform, USER_UPDATES).entries[0].rejected == {"missing_environment": 1}


def test_what_only_begins_with_white_space_is_a_url(platform: Platform) -> None:
    platform.put_views("PageViews/x", [view("2017-04-01T10:00:00", "\u00a0a"), view("2017-04-01T10:00:00", "é")])
    assert ingest(platform).entries[0].rows == 2


def test_of_a_key_that_is_there_twice_the_first_counts(platform: Platform) -> None:
    line = LINE.decode().rstrip()
    platform.put_views("PageViews/x", [line[:-1] + ', "url": "/second", "user_id": "none"}'])
    assert platform.materialize("2017-04-01", checks=False).success
    assert platform.rows("staging", "select url, user_id from page_views") == [("/a", 1)]


def test_names_of_objects_in_an_alert_are_neither_markup_nor_lines_of_their_own() -> None:
    from user_pipeline.defs.automation.alerts import _verbatim

    shown = _verbatim(f"{mask_key('PageViews/`*x*`' + chr(10) + '*Asset:* forged')}: 1 of 2 lines")
    assert shown == "```PageViews/'*x*'\\n*Asset:* forged: 1 of 2 lines```"
