"""New objects found by a queue, by a listing, and by neither for too long."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import boto3
import pytest

from user_pipeline.ingest import discovery
from user_pipeline.ingest.discovery import SlowListingError, last_listing, look_within, receive
from user_pipeline.ingest.feeds import FEEDS, PAGE_VIEWS
from user_pipeline.ingest.manifest import Manifest
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline.resources.queue import Announced, QueueError, QueueUnavailableError, SourceQueue
from user_pipeline.setting_values import Location
from user_pipeline_tests.ingest.reading import NOW, Read, ingest, manifest_of
from user_pipeline_tests.platform import Platform, view
from user_pipeline_tests.s3 import Endpoint, s3_endpoint

PREFIX = "logs of ünï/a+b %20"
HOUR = timedelta(hours=1)
WRITTEN = "2017-04-30T10:00:00.000Z"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with s3_endpoint(monkeypatch, "source", "other") as endpoint:
        yield endpoint


class Queue:
    """A queue that the buckets tell of their objects."""

    def __init__(self, s3: Endpoint) -> None:
        self.s3 = s3
        self.client: Any = boto3.client("sqs")
        self.url: str = self.client.create_queue(QueueName="logs")["QueueUrl"]
        arn = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        for bucket in ("source", "other"):
            events = [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]}]
            s3.client.put_bucket_notification_configuration(
                Bucket=bucket, NotificationConfiguration={"QueueConfigurations": events}
            )

    def deliver(self, key: str, *rows: Any, bucket: str = "source") -> None:
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        self.s3.client.put_object(Bucket=bucket, Key=key, Body=body)

    def send(self, body: Any) -> None:
        self.client.send_message(QueueUrl=self.url, MessageBody=body if isinstance(body, str) else json.dumps(body))

    def waiting(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.client.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)


@pytest.fixture
def queue(s3: Endpoint) -> Queue:
    return Queue(s3)


@pytest.fixture
def told(
    queue: Queue, postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    """A platform whose source tells the queue of its objects; its folders were listed at :data:`NOW`."""
    locations = {
        "USER_PIPELINE_SOURCE_URL": f"s3://source/{PREFIX}",
        "USER_PIPELINE_SOURCE_QUEUE_URL": queue.url,
    }
    with Platform.create(postgres, tmp_path / "told", **locations) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        for feed in FEEDS:
            look(made, feed=feed)
        yield made


def look(platform: Platform, now: datetime = NOW, **more: Any) -> dict[str, int]:
    """The rows of each object that one look has read."""
    queue = platform.storage.queue
    assert queue
    receive(queue, [manifest_of(platform, feed) for feed in FEEDS])
    read: Read = ingest(platform, now=now, queue=queue, **more)
    return {entry.key: entry.rows for entry in read.entries}


def announced(platform: Platform) -> list[str]:
    manifest = manifest_of(platform)
    return [key for (key,) in manifest.fetch("select key from pipeline.announced_objects order by number")]


GOOD = view("2017-04-01T10:00:00")


def no_listing(*_: Any) -> Any:
    raise AssertionError("nobody is to list")


def test_what_the_bucket_tells_of_is_read_without_a_listing(
    told: Platform, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{PREFIX}/PageViews/ö +/a%20b.json"
    queue.deliver(key, GOOD)
    queue.deliver(f"{PREFIX}/UserUpdates/of the other feed")
    monkeypatch.setattr(type(told.storage.source), "list", no_listing)
    assert look(told) == {"PageViews/ö +/a%20b.json": 1}
    assert queue.waiting() == 0
    assert announced(told) == ["UserUpdates/of the other feed"]
    assert look(told) == {}
    queue.deliver(key, GOOD, GOOD)
    assert look(told) == {"PageViews/ö +/a%20b.json": 2}
    # An older notification of what was read already, once more.
    queue.deliver(key, GOOD, GOOD)
    assert look(told) == {}
    assert announced(told) == ["UserUpdates/of the other feed"]


def test_foreign_messages_are_harmless_and_go(told: Platform, queue: Queue) -> None:
    queue.deliver("PageViews/elsewhere in the bucket", GOOD)
    queue.deliver(f"{PREFIX}/PageViews/in another bucket", GOOD, bucket="other")
    queue.deliver(f"{PREFIX}/Other/feed", GOOD)
    queue.deliver(f"{PREFIX}/PageViews/_hidden", GOOD)
    queue.deliver(f"{PREFIX}/PageViews/marker/")
    queue.deliver(f"{PREFIX}/PageViews/deleted", GOOD)
    queue.s3.client.delete_object(Bucket="source", Key=f"{PREFIX}/PageViews/deleted")
    record = {"eventName": "ObjectCreated:Put", "eventTime": WRITTEN, "s3": {"bucket": {"name": "source"}}}
    for body in (
        "",
        "[]",
        "nothing of the kind",
        "{",
        '"text"',
        "[" * 100_000,
        '{"Records": 1}',
        '{"Message": "{"}',
        {"Records": [None]},
        {"Records": [record]},
        {"Event": "s3:TestEvent"},
        {"detail-type": "Object Created"},
    ):
        queue.send(body or " ")
    queue.deliver(f"{PREFIX}/PageViews/good", GOOD)
    assert look(told) == {"PageViews/good": 1}
    assert (queue.waiting(), announced(told)) == (0, [])


@pytest.mark.parametrize(
    ("wrong", "time"),
    [
        ({"key": f"{PREFIX}/PageViews/a\0b"}, "2017-04-30T10:00:00Z"),
        ({"key": f"{PREFIX}/PageViews/\ud800"}, "2017-04-30T10:00:00Z"),
        ({"etag": "a\0b"}, "2017-04-30T10:00:00Z"),
        ({"size": 2**63}, "2017-04-30T10:00:00Z"),
        ({"size": -1}, "2017-04-30T10:00:00Z"),
        ({}, "0001-01-01T00:00:00+14:00"),
    ],
    ids=["NUL", "surrogate", "e-tag", "size", "negative size", "time"],
)
def test_what_no_database_can_hold_is_no_object(queue: Queue, wrong: dict[str, Any], time: str) -> None:
    told = {"key": f"{PREFIX}/PageViews/a", "size": 7, "etag": "abc", **wrong}
    queue.send(
        {"detail-type": "Object Created", "time": time, "detail": {"bucket": {"name": "source"}, "object": told}}
    )
    received = list(SourceQueue(queue.url, Location("X", f"s3://source/{PREFIX}")).receive())
    assert [found for each in received for found in each.objects] == []
    assert received


def test_a_key_with_a_nul_does_not_block_the_queue(told: Platform, queue: Queue) -> None:
    key = quote_plus(f"{PREFIX}/PageViews/a\0b")
    found = {"bucket": {"name": "source"}, "object": {"key": key, "size": 7, "eTag": "abc"}}
    queue.send({"Records": [{"eventName": "ObjectCreated:Put", "eventTime": WRITTEN, "s3": found}]})
    queue.deliver(f"{PREFIX}/PageViews/good", GOOD)
    assert look(told) == {"PageViews/good": 1}
    assert (queue.waiting(), announced(told)) == (0, [])


@pytest.mark.parametrize("by", ["SNS", "EventBridge"])
def test_notifications_by_other_ways_are_understood(queue: Queue, by: str) -> None:
    key = "p/PageViews/a b+c"
    if by == "SNS":
        record = {
            "eventName": "ObjectCreated:CompleteMultipartUpload",
            "eventTime": WRITTEN,
            "s3": {"bucket": {"name": "b"}, "object": {"key": "p/PageViews/a+b%2Bc", "size": 7, "eTag": "abc-2"}},
        }
        queue.send({"Type": "Notification", "Message": json.dumps({"Records": [record]})})
    else:
        detail = {"bucket": {"name": "b"}, "object": {"key": key, "size": 7, "etag": "abc-2"}}
        queue.send({"detail-type": "Object Created", "time": "2017-04-30T10:00:00Z", "detail": detail})
    [received] = SourceQueue(queue.url, Location("X", "s3://b/p")).receive()
    written = datetime(2017, 4, 30, 10, tzinfo=UTC)
    assert list(received.objects) == [Announced("PageViews/a b+c", "abc-2", 7, written)]


def test_many_messages_and_duplicates_are_one_object_each(told: Platform, queue: Queue) -> None:
    for number in range(35):
        queue.deliver(f"{PREFIX}/PageViews/{number % 30}", GOOD)
    assert len(look(told)) == 30
    assert (queue.waiting(), announced(told)) == (0, [])


def test_what_was_announced_survives_a_run_that_dies(
    told: Platform, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.deliver(f"{PREFIX}/PageViews/a", GOOD)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            look(told)
    assert (queue.waiting(), announced(told)) == (0, ["PageViews/a"])
    assert look(told) == {"PageViews/a": 1}
    assert announced(told) == []


def test_what_could_not_be_fetched_is_tried_again_and_what_is_gone_is_not(told: Platform, queue: Queue) -> None:
    for name in ("refused", "gone", "good"):
        queue.deliver(f"{PREFIX}/PageViews/{name}", GOOD)

    class Refusing:
        def get(self, key: str) -> Any:
            if key.endswith("refused"):
                raise PermissionError("not now")
            return told.storage.source.get(key)

        def is_changed(self, *_: str) -> bool:
            return False

    queue.s3.client.delete_object(Bucket="source", Key=f"{PREFIX}/PageViews/gone")
    assert look(told, source=Refusing(), alone=False) == {"PageViews/good": 1}
    assert announced(told) == []
    assert look(told) == {"PageViews/refused": 1}
    assert look(told) == {}


def test_what_has_to_settle_stays_announced(told: Platform, queue: Queue) -> None:
    now = datetime.now(UTC)
    assert look(told, now) == {}
    queue.deliver(f"{PREFIX}/PageViews/a", GOOD)
    assert look(told, now, settle=HOUR) == {}
    assert announced(told) == ["PageViews/a"]
    assert look(told, now + 2 * HOUR, settle=HOUR) == {"PageViews/a": 1}
    assert announced(told) == []


def test_once_a_day_all_objects_are_listed(told: Platform, queue: Queue) -> None:
    queue.deliver(f"{PREFIX}/PageViews/a", GOOD)
    queue.client.purge_queue(QueueUrl=queue.url)
    assert look(told, NOW + 23 * HOUR) == {}
    assert look(told, NOW + 24 * HOUR) == {"PageViews/a": 1}
    listing = last_listing(manifest_of(told))
    assert listing is not None
    assert (listing.listed_at, listing.objects) == (NOW + 24 * HOUR, 1)


@pytest.mark.parametrize(
    ("endpoint", "error", "said"),
    [
        (None, QueueError, "the queue must exist, and the role needs sqs:ReceiveMessage"),
        ("http://127.0.0.1:9", QueueUnavailableError, "SQS cannot be asked: Could not connect"),
    ],
)
def test_a_queue_that_cannot_be_asked_is_named(
    s3: Endpoint, monkeypatch: pytest.MonkeyPatch, endpoint: str | None, error: type[Exception], said: str
) -> None:
    url = endpoint or s3.url
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", url)
    asked = SourceQueue(f"{url}/123456789012/other", Location("X", "s3://source"))
    with pytest.raises(error, match=f"USER_PIPELINE_SOURCE_QUEUE_URL={url}/123456789012/other: ") as raised:
        next(asked.receive())
    assert said in str(raised.value)


def test_a_listing_that_takes_too_long_is_given_up(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD])
    manifest = manifest_of(platform)
    with look_within(manifest, platform.storage.source, 60) as found:
        assert found.listed == 1
    with pytest.raises(SlowListingError), look_within(manifest, platform.storage.source, -1):
        pass
    assert last_listing(manifest) is None


def test_a_run_keeps_how_long_its_listing_took(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    platform.put_views("PageViews/a", [GOOD])
    ingest(platform)
    manifest = Manifest(PAGE_VIEWS, platform.lake.staging)
    listing = last_listing(manifest)
    assert listing is not None
    assert (listing.listed_at, listing.objects, listing.is_slow) == (NOW, 1, False)
    assert 0 < listing.seconds < 60
    monkeypatch.setattr(discovery, "SLOW_SECONDS", 0.0)
    assert listing.is_slow
    assert listing.next_at == NOW + timedelta(minutes=5)
