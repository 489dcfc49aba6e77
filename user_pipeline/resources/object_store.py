"""One interface to the objects of an S3 bucket and to the files of a directory."""

import os
import re
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.errors import PermanentError
from user_pipeline.masking import mask
from user_pipeline.settings import Location, Settings

if TYPE_CHECKING:
    from obstore.store import LocalStore, S3Store

    Store = LocalStore | S3Store

# A wrong endpoint or bucket shows within seconds; a store that is only having a bad minute is waited for.
_CONNECT_TIMEOUT = timedelta(seconds=5)
_PROBE_TIMEOUT = timedelta(seconds=10)
_PROBE_RETRY = {"max_retries": 1, "retry_timeout": timedelta(seconds=5)}
_RETRY = {"max_retries": 8, "retry_timeout": timedelta(minutes=2)}
# botocore renews temporary credentials ten minutes before they expire at the latest: they hold for longer.
_CREDENTIALS_TTL = timedelta(minutes=9)
_ENCRYPTIONS = ("AES256", "aws:kms", "aws:kms:dsse", "sse-c")
# Some come with another status than 403.
_REFUSALS = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken")


class ObjectStoreError(PermanentError):
    """A location cannot be used as it is set."""

    def __init__(self, location: Location, problem: str) -> None:
        super().__init__(f"{location.variable}={location.url}: {problem}")


class ObjectStoreUnavailableError(Exception):
    """A store answers, but not now; it may do better later."""


class ObjectStorage:
    """The two locations of the platform, opened when first used.

    Attributes:
        source: the store the feeds are read from.
        lake: the store everything the platform keeps is written to.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def source(self) -> "Store":
        """The store with the feed folders.

        Raises:
            ObjectStoreError: it is not there or may not be read.
        """
        location = self._settings.source
        default = self._settings.data_dir / "source"
        if not location.is_s3 and Path(location.url) != default and not Path(location.url).is_dir():
            raise ObjectStoreError(
                location,
                "there is no such directory; it should hold the folders UserUpdates and PageViews",
            )
        return open_store(location)

    @cached_property
    def lake(self) -> "Store":
        """The store of the lake.

        Raises:
            ObjectStoreError: it is not there or may not be used.
        """
        return open_store(self._settings.lake)

    def lake_url(self, path: str) -> str:
        """How to name an object of the lake to a person."""
        return f"{self._settings.lake.url}/{path}"

    def lake_file(self, path: str) -> Path | None:
        """The file an object of the lake is, or None where the lake is a bucket."""
        return None if self._settings.lake.is_s3 else Path(self._settings.lake.url) / path


def open_store(location: Location) -> "Store":
    """Open a location; a directory is made when it is missing, a bucket has to exist.

    A bucket is asked for one key at once, so that what is wrong with the settings is said here.

    Raises:
        ObjectStoreError: the directory cannot be made, or the bucket cannot be listed.
        ObjectStoreUnavailableError: the bucket cannot be listed now.
    """
    if location.is_s3:
        return _open_bucket(location)
    from obstore.store import LocalStore

    try:
        Path(location.url).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ObjectStoreError(location, f"the directory cannot be made: {error.strerror}") from error
    return LocalStore(location.url)


def _open_bucket(location: Location) -> "S3Store":
    import boto3
    import botocore.session
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

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

    def store(retry: dict[str, object], **options: object) -> S3Store:
        return S3Store(
            bucket,
            prefix=prefix or None,
            config=config,  # type: ignore[arg-type]
            client_options={  # type: ignore[arg-type]
                "connect_timeout": _CONNECT_TIMEOUT,
                "allow_http": (endpoint or "").startswith("http://"),
                **options,
            },
            retry_config=retry,  # type: ignore[arg-type]
            credential_provider=credentials,
        )

    _probe(store(_PROBE_RETRY, timeout=_PROBE_TIMEOUT), location, bucket, endpoint)
    return store(_RETRY)


def _check_encryption(location: Location) -> None:
    """What obstore reads from the environment by itself, and passes over where it does not go together."""
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


def _probe(store: "S3Store", location: Location, bucket: str, endpoint: str | None) -> None:
    """List one key, and say in the terms of the settings what keeps that from working.

    Raises:
        ObjectStoreError: the settings do not lead to a bucket.
        ObjectStoreUnavailableError: they do, or may, but it cannot answer now.
    """
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    where = f"AWS_ENDPOINT_URL={endpoint}" if endpoint else "AWS S3"
    try:
        next(iter(store.list(chunk_size=1)), None)
    except FileNotFoundError as error:
        raise ObjectStoreError(location, f"the bucket {bucket!r} does not exist at {where}") from error
    except BaseError as error:
        reason = mask(str(error))
        if "NoSuchBucket" in reason:
            problem = f"the bucket {bucket!r} does not exist at {where}"
        elif isinstance(error, PermissionDeniedError | UnauthenticatedError) or any(
            text in reason for text in ("403 Forbidden", *(f"<Code>{code}</Code>" for code in _REFUSALS))
        ):
            problem = (
                f"{where} refuses the AWS credentials for the bucket {bucket!r}; check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE and the bucket's policy"
            )
        elif re.search(r"status code: (5\d\d|429)|response body", reason):
            message = f"{location.variable}={location.url}: {where} is in trouble: {reason.splitlines()[0][:300]}"
            raise ObjectStoreUnavailableError(message) from error
        else:
            problem = f"{where} cannot be reached: {reason.splitlines()[0][:300]}"
        raise ObjectStoreError(location, problem) from error
