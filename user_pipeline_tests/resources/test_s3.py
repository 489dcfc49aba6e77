"""The whole pipeline on an S3 endpoint: the same tables as from a directory, and plain words for what is set wrong."""

import http.server
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from botocore.credentials import RefreshableCredentials

from user_pipeline.cli.sample_logs import SampleLogs
from user_pipeline.reconcile.comparing import Recompute
from user_pipeline.reconcile.tables import _choices
from user_pipeline.resources import object_store
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline.resources.object_store import ObjectStoreError
from user_pipeline.resources.postgres import Databases
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.settings import Settings
from user_pipeline_tests.ingest.reading import ingest, manifest_of
from user_pipeline_tests.platform import Platform, update, view
from user_pipeline_tests.s3 import Endpoint, s3_endpoint

if TYPE_CHECKING:
    from user_pipeline.resources.object_store import Store

LOGS = SampleLogs(days=2, users=30, views_per_day=300)
DAYS = ("2017-04-01", "2017-04-02")
SOURCE_PREFIX = "logs of ünï/a+b %20"
LAKE_PREFIX = "the lake/ö"
TABLES = [
    ("staging", "user_updates"),
    ("staging", "page_views"),
    ("staging", "rejected_lines"),
    ("analytics", "users"),
    ("analytics", "user_page_views"),
    ("analytics", "page_recommendations"),
]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with s3_endpoint(monkeypatch, "source", "lake") as endpoint:
        yield endpoint


@pytest.fixture
def on_s3(
    s3: Endpoint, postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    """A platform with source and lake below prefixes of two buckets."""
    locations = {
        "USER_PIPELINE_SOURCE_URL": f"s3://source/{SOURCE_PREFIX}",
        "USER_PIPELINE_LAKE_URL": f"s3://lake/{LAKE_PREFIX}/",
    }
    with Platform.create(postgres, tmp_path / "on s3", **locations) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        assert s3.url
        yield made


def deliver(s3: Endpoint, key: str, content: bytes | str) -> None:
    body = content.encode() if isinstance(content, str) else content
    s3.client.put_object(Bucket="source", Key=f"{SOURCE_PREFIX}/{key}", Body=body)


def exports_of(s3: Endpoint) -> dict[str, bytes]:
    prefix = f"{LAKE_PREFIX}/exports/"
    return {
        key.removeprefix(prefix): s3.client.get_object(Bucket="lake", Key=key)["Body"].read()
        for key in s3.keys("lake")
        if key.startswith(prefix)
    }


def test_a_bucket_gives_the_tables_and_exports_of_a_directory(
    on_s3: Platform, s3: Endpoint, postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, content in LOGS.objects():
        deliver(s3, key, content)
    assert on_s3.materialize(*DAYS).success
    bucket_tables = {name: on_s3.table(database, name) for database, name in TABLES}
    assert len(bucket_tables["page_views"]) > 500
    assert bucket_tables["rejected_lines"]
    assert {key.split("/")[2] for key in s3.keys("lake")} == {
        "cleaned", "daily", "exports", "format.json", "log", "quality", "raw", "rejected", "snapshots",
    }  # fmt: skip
    assert not (tmp_path / "on s3/lake").exists()

    with Platform.create(postgres, tmp_path / "directory") as directory:
        for name, value in directory.environment.items():
            monkeypatch.setenv(name, value)
        for key, content in LOGS.objects():
            directory.put(key, content)
        assert directory.materialize(*DAYS).success
        assert {name: directory.table(database, name) for database, name in TABLES} == bucket_tables
        exports = directory.root / "lake/exports"
        assert {
            str(path.relative_to(exports)): path.read_bytes() for path in exports.rglob("*") if path.is_file()
        } == exports_of(s3)


def test_objects_are_read_once_again_when_they_change_and_kept_when_they_go(on_s3: Platform, s3: Endpoint) -> None:
    odd = "PageViews/year=2017/ü +%2B#?&.json"
    deliver(s3, "UserUpdates/x", update("2017-04-01T00:00:00", 1))
    deliver(s3, odd, '{"ts": "2017-04-01T10:00:00", "url": "/a", "environment": "production", "user_id": 1}\nbroken\n')
    deliver(s3, "PageViews/", b"")
    deliver(s3, "PageViews/_SUCCESS", b"")
    s3.client.put_object(Bucket="source", Key="PageViews/outside the prefix", Body=b"broken")
    select = ["raw_user_updates", "raw_page_views", "user_updates", "page_views", "users", "user_page_views"]

    def summary() -> list[tuple[Any, ...]]:
        return [row[1:4] for row in on_s3.table("analytics", "user_page_views")]

    def read(result: dg.ExecuteInProcessResult) -> Any:
        [event] = [
            e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey("ingested_page_views")
        ]
        return event.materialization.metadata["objects_read"].value

    assert read(on_s3.materialize(DAYS[0], select=select, checks=False)) == 1
    assert summary() == [("a@example.com", "/a", 1)]
    assert on_s3.rows("staging", "select source_object, source_line from rejected_lines") == [(odd, 2)]
    assert read(on_s3.materialize(DAYS[0], select=select, checks=False)) == 0
    deliver(s3, odd, '{"ts": "2017-04-01T10:00:00", "url": "/new", "environment": "production", "user_id": 1}\n')
    assert read(on_s3.materialize(DAYS[0], select=select, checks=False)) == 1
    assert summary() == [("a@example.com", "/new", 1)]
    assert on_s3.rows("staging", "select * from rejected_lines") == []
    s3.client.delete_object(Bucket="source", Key=f"{SOURCE_PREFIX}/{odd}")
    assert read(on_s3.materialize(DAYS[0], select=select, checks=False)) == 0
    assert summary() == [("a@example.com", "/new", 1)]


def test_reads_at_once_lose_no_entry(on_s3: Platform, s3: Endpoint) -> None:
    """Each reads its own object and one that all of them meet, every time with other content."""
    manifest_of(on_s3).open()

    def read(number: int) -> None:
        deliver(s3, f"PageViews/{number}", json.dumps(view("2017-04-01T00:00:00")))
        deliver(s3, "PageViews/shared", "".join(json.dumps(view("2017-04-01T00:00:00")) + "\n" for _ in range(number)))
        databases = Databases(on_s3.settings)
        ingest(replace(on_s3, databases=databases), alone=False)
        databases.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read, range(1, 7)))
    ingest(on_s3)
    entries = list(manifest_of(on_s3).entries())
    assert [found.key for found in entries] == [*(f"PageViews/{n}" for n in range(1, 7)), "PageViews/shared"]
    shared = s3.client.get_object(Bucket="source", Key=f"{SOURCE_PREFIX}/PageViews/shared")["Body"].read()
    assert [found.rows for found in entries] == [*[1] * 6, len(shared.splitlines())]
    assert ingest(on_s3).entries == []


class Refusing(http.server.BaseHTTPRequestHandler):
    """An S3 endpoint that knows nobody."""

    code = "InvalidAccessKeyId"

    def do_GET(self) -> None:
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{self.code}</Code>'
            "<Message>Who are you?</Message></Error>"
        ).encode()
        self.send_response(403)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_snapshot_without_files_is_told_of_where_the_lake_is_a_whole_bucket(
    s3: Endpoint, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    day = date(2017, 4, 1)
    with (
        Platform.create(postgres, tmp_path / "whole bucket", USER_PIPELINE_LAKE_URL="s3://lake") as made,
        made.engine() as engine,
        engine.connect() as connection,
    ):
        registry = made.lake.analytics
        registry.open()
        with registry.database.transaction() as transaction:
            registry.commit(transaction, "page_recommendations", {day: []}, "a run")
        assert s3.keys("lake")
        assert _choices(Recompute(made.lake, engine, connection), "page_recommendations", day) is None


@pytest.fixture
def refusing() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


KEYS = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_REGION": "us-east-1"}


def open_both(
    environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, bucket: str = "s3://source"
) -> Iterator[str]:
    """What opening either location with these AWS variables says, each within 15 seconds."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("source", "lake"):
        variable = f"USER_PIPELINE_{name.upper()}_URL"
        storage = ObjectStorage(Settings.from_environment({variable: bucket}))
        started = time.monotonic()
        with pytest.raises(ObjectStoreError) as raised:
            getattr(storage, name)
        assert time.monotonic() - started < 15
        message = str(raised.value)
        assert message.startswith(f"{variable}={bucket}: ")
        assert "test-secret" not in message
        yield message


def test_a_missing_bucket_is_said_to_be_missing(s3: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for message in open_both({}, monkeypatch, "s3://no-such-bucket/x"):
        assert f"the bucket 'no-such-bucket' does not exist at AWS_ENDPOINT_URL={s3.url}" in message


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_refused_credentials_are_said_to_be_refused(refusing: str, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(Refusing, "code", code)
    for message in open_both({**KEYS, "AWS_ENDPOINT_URL": refusing}, monkeypatch):
        assert f"AWS_ENDPOINT_URL={refusing} refuses the AWS credentials" in message
        assert "AWS_ACCESS_KEY_ID" in message


def test_missing_credentials_are_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for message in open_both({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, monkeypatch):
        assert "no AWS credentials were found; set AWS_ACCESS_KEY_ID" in message


@pytest.mark.parametrize("wrong", [{"AWS_PROFILE": "nobody"}, {"AWS_ACCESS_KEY_ID": "half"}])
def test_credentials_set_wrong_are_named(wrong: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for message in open_both({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", **wrong}, monkeypatch):
        assert "the AWS configuration cannot be used" in message
        assert "nobody" in message or "AWS_SECRET_ACCESS_KEY" in message


@pytest.mark.parametrize("port", [4, 403, 401])
def test_a_closed_port_is_said_to_be_out_of_reach(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{port}"
    for message in open_both({**KEYS, "AWS_ENDPOINT_URL": endpoint}, monkeypatch):
        assert f"AWS_ENDPOINT_URL={endpoint} cannot be reached" in message


def test_an_endpoint_that_never_answers_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert object_store._PROBE_TIMEOUT.total_seconds() <= 10
    monkeypatch.setattr(object_store, "_PROBE_TIMEOUT", timedelta(seconds=1))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for message in open_both({**KEYS, "AWS_ENDPOINT_URL": endpoint}, monkeypatch):
            assert f"AWS_ENDPOINT_URL={endpoint} cannot be reached" in message


@pytest.mark.parametrize("endpoint", ["localhost:9000", "minio", "http://", "http://a b", "ftp://x"])
def test_an_endpoint_that_is_no_url_is_said_to_be_none(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for message in open_both({**KEYS, "AWS_ENDPOINT_URL": endpoint}, monkeypatch):
        assert f"AWS_ENDPOINT_URL={endpoint} should be http://host[:port]" in message


@pytest.mark.parametrize("name", ["SOURCE", "LAKE"])
def test_dagster_fails_at_once_and_does_not_try_again(
    name: str, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"USER_PIPELINE_{name}_URL"
    for key, value in {**KEYS, "AWS_ENDPOINT_URL": "http://127.0.0.1:4", variable: "s3://nowhere"}.items():
        monkeypatch.setenv(key, value)
    platform.put_views("PageViews/x", [view("2017-04-01T00:00:00")])
    started = time.monotonic()
    result = platform.materialize(DAYS[0], select=["raw_page_views", "page_views"], raise_on_error=False)
    assert time.monotonic() - started < 15
    [failed] = result.get_step_failure_events()
    data = failed.step_failure_data.user_failure_data
    assert data
    assert f"{variable}=s3://nowhere: AWS_ENDPOINT_URL=http://127.0.0.1:4 cannot be reached" in str(data.description)
    assert not [event for event in result.all_events if event.is_step_up_for_retry]


KMS_KEY = "arn:aws:kms:us-east-1:123456789012:key/1"
ENCRYPTED = {
    "ServerSideEncryption": "aws:kms",
    "SSEKMSKeyId": KMS_KEY,
    "BucketKeyEnabled": True,
}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {}),
        ({"AWS_SERVER_SIDE_ENCRYPTION": "AES256"}, {"ServerSideEncryption": "AES256"}),
        ({"AWS_SERVER_SIDE_ENCRYPTION": "aws:kms"}, {"ServerSideEncryption": "aws:kms"}),
        (
            {
                "AWS_SERVER_SIDE_ENCRYPTION": "aws:kms",
                "AWS_SSE_KMS_KEY_ID": KMS_KEY,
                "AWS_SSE_BUCKET_KEY_ENABLED": "true",
            },
            ENCRYPTED,
        ),
    ],
)
def test_objects_are_encrypted_as_the_standard_variables_say(
    s3: Endpoint, environment: dict[str, str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    lake = ObjectStorage(Settings.from_environment({"USER_PIPELINE_LAKE_URL": "s3://lake"})).lake
    lake.put("small", b"x", mode="create")
    lake.put("large", b"x" * (12 * 2**20))
    lake.copy("small", "copy")
    for key in ("small", "large", "copy"):
        head = s3.client.head_object(Bucket="lake", Key=key)
        found = {name: head[name] for name in ENCRYPTED if head.get(name)}
        # moto forgets the bucket key of what comes in parts.
        assert found == {name: value for name, value in expected.items() if name in found or key != "large"}
        assert head.get("ServerSideEncryption") == expected.get("ServerSideEncryption")


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"AWS_SERVER_SIDE_ENCRYPTION": "kms"}, "AWS_SERVER_SIDE_ENCRYPTION=kms should be one of AES256, aws:kms"),
        ({"AWS_SSE_KMS_KEY_ID": KMS_KEY}, "set AWS_SERVER_SIDE_ENCRYPTION=aws:kms"),
        ({"AWS_SSE_KMS_KEY_ID": KMS_KEY, "AWS_SERVER_SIDE_ENCRYPTION": "AES256"}, "AWS_SSE_KMS_KEY_ID is set"),
    ],
)
def test_encryption_that_would_not_happen_is_refused(
    s3: Endpoint, environment: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert s3.url
    for message in open_both(environment, monkeypatch):
        assert problem in message


def test_a_large_object_goes_in_parts_and_a_small_one_does_not(s3: Endpoint, tmp_path: Path) -> None:
    lake = ObjectStorage(Settings.from_environment({"USER_PIPELINE_LAKE_URL": "s3://lake"})).lake
    content = b"".join(number.to_bytes(8, "big") for number in range(4 * 2**20))
    (tmp_path / "large").write_bytes(content)
    with (tmp_path / "large").open("rb") as file:
        lake.put("large", file)
    lake.put("small", b"x")
    heads = {key: s3.client.head_object(Bucket="lake", Key=key) for key in ("large", "small")}
    # S3 tells the number of parts in the e-tag.
    assert int(heads["large"]["ETag"].strip('"').rpartition("-")[2]) == len(content) // (5 * 2**20) + 1
    assert "-" not in heads["small"]["ETag"]
    assert s3.client.list_multipart_uploads(Bucket="lake").get("Uploads", []) == []
    assert lake.get("large").bytes().to_bytes() == content


class Listing(http.server.ThreadingHTTPServer):
    """An S3 of empty buckets that notes whose requests it answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ListingHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.seen: list[tuple[str, str, str | None]] = []


class _ListingHandler(http.server.BaseHTTPRequestHandler):
    server: Listing

    def do_GET(self) -> None:
        key, region = self.headers["Authorization"].split("Credential=")[1].split("/")[0:3:2]
        self.server.seen.append((key, region, self.headers["x-amz-security-token"]))
        body = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listing() -> Iterator[Listing]:
    with Listing() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def open_lake() -> "Store":
    return ObjectStorage(Settings.from_environment({"USER_PIPELINE_LAKE_URL": "s3://lake"})).lake


def test_a_session_token_goes_with_every_request(listing: Listing, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**KEYS, "AWS_SESSION_TOKEN": "a token", "AWS_ENDPOINT_URL": listing.url}.items():
        monkeypatch.setenv(name, value)
    list(open_lake().list())
    assert listing.seen == [("test-key", "us-east-1", "a token")] * 2


def test_a_profile_gives_keys_region_and_endpoint(
    listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(f"[profile logs]\nregion = eu-central-1\nendpoint_url = {listing.url}\n")
    (tmp_path / "credentials").write_text(
        "[logs]\naws_access_key_id = of-profile\naws_secret_access_key = x\naws_session_token = its token\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "logs")
    open_lake()
    assert listing.seen == [("of-profile", "eu-central-1", "its token")]


def test_credentials_that_expire_are_asked_for_anew(
    listing: Listing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each time, the process gives other keys, which botocore holds for too old to be used again.
    script = tmp_path / "keys.py"
    script.write_text(
        "import datetime, json, pathlib\n"
        "counter = pathlib.Path(__file__).with_suffix('.count')\n"
        "count = int(counter.read_text()) + 1 if counter.exists() else 1\n"
        "counter.write_text(str(count))\n"
        "end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)\n"
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'key-{count}', 'SecretAccessKey': 'x',\n"
        "    'SessionToken': f'token-{count}', 'Expiration': end.isoformat()}))\n"
    )
    (tmp_path / "config").write_text(f"[default]\nregion = us-east-1\ncredential_process = {sys.executable} {script}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", listing.url)
    monkeypatch.setattr(object_store, "_CREDENTIALS_TTL", timedelta(0))
    lake = open_lake()
    list(lake.list())
    list(lake.list())
    numbers = [int(key.removeprefix("key-")) for key, _, _ in listing.seen]
    assert [token for _, _, token in listing.seen] == [f"token-{number}" for number in numbers]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 3


def test_credentials_are_never_kept_longer_than_botocore_says_they_hold() -> None:
    seconds: int = vars(RefreshableCredentials)["_mandatory_refresh_timeout"]
    assert object_store._CREDENTIALS_TTL.total_seconds() < seconds
