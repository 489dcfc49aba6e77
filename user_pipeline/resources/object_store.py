"""One interface to the objects of an S3 bucket and to the files of a directory."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.errors import PermanentError, UnavailableError
from user_pipeline.masking import mask
from user_pipeline.setting_values import Location

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from obstore.store import LocalStore

    from user_pipeline.resources.bucket_store import BucketStore

    Store = LocalStore | BucketStore

# A wrong endpoint or bucket fails within seconds; requests to a store that is down for a moment are retried.
CONNECT_TIMEOUT = timedelta(seconds=5)
_PROBE_TIMEOUT = timedelta(seconds=10)
_PROBE_RETRY = {"max_retries": 1, "retry_timeout": timedelta(seconds=5)}
_RETRY = {"max_retries": 8, "retry_timeout": timedelta(minutes=2)}
_CLIENT_ATTEMPTS = 9
# botocore renews temporary credentials at least ten minutes before they expire, so they are valid for this long.
_CREDENTIALS_TTL = timedelta(minutes=9)
_ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse", "sse-c")
_ELSEWHERE = ("AuthorizationHeaderMalformed", "PermanentRedirect", "301 Moved Permanently", "IncorrectEndpoint")
"""How S3 says that a bucket is in another region than the request was made for."""
# Some come with another status than 403.
_REFUSALS = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken")


class ObjectStoreError(PermanentError):
    """A location cannot be used as it is set."""

    def __init__(self, location: Location, problem: str) -> None:
        super().__init__(f"{location.variable}={location.url}: {problem}")


class ObjectStoreUnavailableError(UnavailableError):
    """A store cannot answer now, but may later."""

    def __init__(self, location: Location, problem: str) -> None:
        super().__init__(f"{location.variable}={location.url}: {problem}")


@dataclass(frozen=True, slots=True)
class Bucket:
    """An open bucket.

    Attributes:
        store: reads and writes below the location's prefix.
        client: makes a boto3 client with the same credentials, region and endpoint.
    """

    store: "BucketStore"
    client: "Callable[[], S3Client]"


def open_store(location: Location) -> "Store":
    """Open a location; a directory is made when it is missing, a bucket has to exist.

    One key of a bucket is listed at once, so that wrong settings fail here.

    Raises:
        ObjectStoreError: the directory cannot be made, or the bucket cannot be listed.
        ObjectStoreUnavailableError: the bucket cannot be listed now.
    """
    if location.is_s3:
        return connect_bucket(location).store
    from obstore.store import LocalStore

    check_directory(location)
    return LocalStore(location.url)


def check_directory(location: Location) -> None:
    """Make the directory of a location unless it is there.

    Raises:
        ObjectStoreError: it cannot be made.
    """
    try:
        Path(location.url).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ObjectStoreError(location, f"the directory cannot be made: {error.strerror}") from error


def connect_bucket(location: Location, folders: Sequence[str] = ("",)) -> Bucket:
    """Open a bucket, and list one key of some of its folders.

    Raises:
        ObjectStoreError: the settings do not lead to a bucket that may be listed.
        ObjectStoreUnavailableError: the bucket cannot be listed now.
    """
    import boto3
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    from user_pipeline.resources.bucket_store import BucketStore

    _check_encryption(location)
    try:
        core = botocore.session.get_session()
        session = boto3.session.Session(botocore_session=core)
        credentials = Boto3CredentialProvider(session, ttl=_CREDENTIALS_TTL)
        profile = core.get_scoped_config()
    except ValueError as error:
        raise ObjectStoreError(
            location,
            "no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role",
        ) from error
    except BotoCoreError as error:
        raise ObjectStoreError(location, f"the AWS configuration cannot be used: {error}") from error
    bucket, _, prefix = location.url.removeprefix("s3://").partition("/")
    endpoint = (
        os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or profile.get("endpoint_url")
    )
    if endpoint and not re.fullmatch(r"https?://[\w.:\-\[\]]+(/\S*)?", endpoint, re.ASCII):
        shown = "***" if "@" in endpoint else endpoint
        raise ObjectStoreError(location, f"AWS_ENDPOINT_URL={shown} should be http://host[:port] or https://…")
    region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    config = {"region": region} | ({"endpoint": endpoint} if endpoint else {})

    def store(retry: dict[str, object], **options: object) -> BucketStore:
        return BucketStore(
            S3Store(
                bucket,
                prefix=prefix or None,
                config=config,  # type: ignore[arg-type]
                client_options={  # type: ignore[arg-type]
                    "connect_timeout": CONNECT_TIMEOUT,
                    "allow_http": (endpoint or "").startswith("http://"),
                    **options,
                },
                retry_config=retry,  # type: ignore[arg-type]
                credential_provider=credentials,
            )
        )

    def client() -> "S3Client":
        options = Config(
            connect_timeout=CONNECT_TIMEOUT.total_seconds(),
            retries={"mode": "standard", "total_max_attempts": _CLIENT_ATTEMPTS},
            # As obstore addresses it.
            s3={"addressing_style": "path"},
        )
        return session.client("s3", region_name=region, endpoint_url=endpoint or None, config=options)

    probe = store(_PROBE_RETRY, timeout=_PROBE_TIMEOUT)
    for folder in folders:
        _probe(probe, location, bucket, endpoint, folder)
    return Bucket(store(_RETRY), client)


def _check_encryption(location: Location) -> None:
    """Refuse variables of server-side encryption that obstore would ignore because they do not fit each other.

    Raises:
        ObjectStoreError: they do not.
    """
    algorithm = os.environ.get("AWS_SERVER_SIDE_ENCRYPTION", "")
    if algorithm and algorithm not in _ENCRYPTIONS:
        raise ObjectStoreError(
            location, f"AWS_SERVER_SIDE_ENCRYPTION={algorithm} should be one of {', '.join(_ENCRYPTIONS)}"
        )
    if os.environ.get("AWS_SSE_KMS_KEY_ID") and not algorithm.startswith("aws:kms"):
        raise ObjectStoreError(
            location,
            "AWS_SSE_KMS_KEY_ID is set, and nothing would be encrypted with it: set AWS_SERVER_SIDE_ENCRYPTION=aws:kms",
        )


def _probe(store: "BucketStore", location: Location, bucket: str, endpoint: str | None, folder: str) -> None:
    """List one key of a folder; an error names the setting that has to change.

    Raises:
        ObjectStoreError: the settings do not lead to a bucket.
        ObjectStoreUnavailableError: they do, or may, but it cannot answer now.
    """
    from obstore.exceptions import BaseError, InvalidPathError, PermissionDeniedError, UnauthenticatedError

    where = f"AWS_ENDPOINT_URL={endpoint}" if endpoint else "AWS S3"
    try:
        next(store.list(folder or None, chunk_size=1), None)
    except InvalidPathError:
        return  # the bucket was listed: somebody's key in it is one that obstore cannot name
    except FileNotFoundError as error:
        raise ObjectStoreError(location, f"the bucket {bucket!r} does not exist at {where}") from error
    except BaseError as error:
        reason = mask(str(error))
        if "NoSuchBucket" in reason:
            problem = f"the bucket {bucket!r} does not exist at {where}"
        elif any(text in reason for text in _ELSEWHERE):
            there = re.search(r"expecting '([\w-]+)'|<Region>([\w-]+)</Region>", reason)
            name = f" ({there[1] or there[2]})" if there else ""
            problem = (
                f"the bucket {bucket!r} is in another region than requests go to; set AWS_REGION to its region{name}"
            )
        elif isinstance(error, PermissionDeniedError | UnauthenticatedError) or any(
            text in reason for text in ("403 Forbidden", *(f"<Code>{code}</Code>" for code in _REFUSALS))
        ):
            problem = (
                f"{where} refuses the AWS credentials for the bucket {bucket!r}; check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE and the bucket's policy"
            )
        elif re.search(r"status code: (5\d\d|429)|response body", reason):
            trouble = f"{where} is in trouble: {reason.splitlines()[0][:300]}"
            raise ObjectStoreUnavailableError(location, trouble) from error
        else:
            problem = f"{where} cannot be reached: {reason.splitlines()[0][:300]}"
        raise ObjectStoreError(location, problem) from error
