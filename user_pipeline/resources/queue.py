"""The SQS queue that receives a bucket's notifications of new objects, if one is set.

Notifications are understood as S3 sends them to SQS, as they come through an SNS topic, and as EventBridge sends them:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html and
https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from user_pipeline.errors import PermanentError, UnavailableError
from user_pipeline.masking import mask
from user_pipeline.resources.object_store import CONNECT_TIMEOUT
from user_pipeline.setting_values import Location
from user_pipeline.settings import variable_of

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient

_AT_ONCE = 10
"""SQS gives and deletes no more messages in one request."""
_WAIT_SECONDS = 1
"""Without a wait SQS asks only some of its servers, and may answer that there are no messages."""
_HIDDEN_SECONDS = 120
"""For this long a received message is hidden from others. It is stored and deleted within this time."""
_LARGEST = 2**63 - 1
_REGION = re.compile(r"https?://(?:sqs\.)?([a-z]{2}(?:-[a-z]+)+-\d)\.")


class QueueError(PermanentError):
    """The queue cannot be used as it is set."""


class QueueUnavailableError(UnavailableError):
    """The queue cannot answer now, but may later."""


@dataclass(frozen=True, slots=True)
class Announced:
    """An object that a notification announces.

    Attributes:
        key: its key, from the feed's folder on.
        etag: what the store called its content.
        size: bytes, as stored.
        written: when, by the notification.
    """

    key: str
    etag: str
    size: int
    written: datetime


@dataclass(frozen=True, slots=True)
class Received:
    """Some messages of the queue.

    Attributes:
        objects: the new objects of the source that they announce, which may be none.
        others: how many of them announce none: they are of another bucket or prefix, of a deletion, a test, or not
            understood.
        receipts: the receipt handles, by which messages are deleted.
    """

    objects: Sequence[Announced]
    others: int
    receipts: Sequence[str]


class SourceQueue:
    """An SQS queue that receives the notifications of a bucket.

    Args:
        url: of the queue.
        source: the bucket, or the prefix in it, whose objects are looked for.
    """

    def __init__(self, url: str, source: Location) -> None:
        self._url = url
        self._bucket, _, prefix = source.url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""

    def receive(self) -> Iterator[Received]:
        """The messages that wait, a few at a time; those that are not deleted come again.

        Raises:
            QueueError: the queue does not exist, or refuses.
            QueueUnavailableError: it does not answer.
        """
        while messages := self._ask(
            lambda: self._client.receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=_AT_ONCE,
                WaitTimeSeconds=_WAIT_SECONDS,
                VisibilityTimeout=_HIDDEN_SECONDS,
            )
        ).get("Messages"):
            told = [list(self._objects(message.get("Body", ""))) for message in messages]
            yield Received(
                objects=[found for objects in told for found in objects],
                others=sum(not objects for objects in told),
                receipts=[message["ReceiptHandle"] for message in messages],
            )

    def delete(self, receipts: Sequence[str]) -> None:
        """Delete messages; one that cannot be comes again.

        Raises:
            QueueError, QueueUnavailableError: as for :meth:`receive`.
        """
        for start in range(0, len(receipts), _AT_ONCE):
            entries: Any = [
                {"Id": str(number), "ReceiptHandle": receipt}
                for number, receipt in enumerate(receipts[start : start + _AT_ONCE])
            ]
            self._ask(lambda entries=entries: self._client.delete_message_batch(QueueUrl=self._url, Entries=entries))

    def _objects(self, body: str) -> Iterator[Announced]:
        """The new objects of the source that a message announces."""
        try:
            message = json.loads(body)
            if isinstance(message, dict) and isinstance(message.get("Message"), str):
                message = json.loads(message["Message"])  # by way of SNS
            yield from self._events(message)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            return  # not understood: the daily listing finds the object, if there is one

    def _events(self, message: Mapping[str, Any]) -> Iterator[Announced]:
        if message.get("detail-type") == "Object Created":
            detail = message["detail"]
            yield from self._object(
                detail["bucket"]["name"], detail["object"], detail["object"]["key"], message["time"]
            )
        for record in message.get("Records", ()):
            if re.match(r"(s3:)?ObjectCreated:", record["eventName"]):
                found = record["s3"]
                key = unquote_plus(found["object"]["key"])
                yield from self._object(found["bucket"]["name"], found["object"], key, record["eventTime"])

    def _object(self, bucket: str, told: Mapping[str, Any], key: str, time: str) -> Iterator[Announced]:
        if bucket != self._bucket or not key.startswith(self._prefix):
            return
        etag, size = str(told.get("eTag") or told.get("etag") or "").strip('"'), int(told.get("size", 0))
        written = datetime.fromisoformat(time).astimezone(UTC)
        # What the database cannot hold: a listing names such an object, and what keeps it from being read.
        if "\0" in key + etag or not 0 <= size <= _LARGEST:
            return
        key.encode()  # raises ValueError for a lone surrogate
        yield Announced(key.removeprefix(self._prefix), etag, size, written)

    @cached_property
    def _client(self) -> "SQSClient":
        import boto3
        from botocore.config import Config

        region = _REGION.match(self._url)
        options = Config(connect_timeout=CONNECT_TIMEOUT.total_seconds(), retries={"mode": "standard"})
        return boto3.client("sqs", region_name=region[1] if region else None, config=options)

    def _ask(self, request: Any) -> Any:  # noqa: ANN401 - each request of boto3 has a type of its own
        from botocore.exceptions import BotoCoreError, ClientError

        setting = f"{variable_of('source_queue_url')}={self._url}"
        try:
            return request()
        except ClientError as error:
            answer = error.response
            code, status = answer["Error"].get("Code", ""), answer["ResponseMetadata"].get("HTTPStatusCode", 0)
            problem = f"{setting}: SQS says {code}: {mask(answer['Error'].get('Message', ''))}"
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR or "Throttl" in code:
                raise QueueUnavailableError(problem) from None
            raise QueueError(
                f"{problem}; the queue must exist, and the role needs sqs:ReceiveMessage and sqs:DeleteMessage on it"
            ) from None
        except BotoCoreError as error:
            raise QueueUnavailableError(f"{setting}: SQS cannot be asked: {mask(str(error))}") from None
