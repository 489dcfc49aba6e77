"""Lakes to test against."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def bucket_lake(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A lake under a prefix of a new bucket, on a real HTTP endpoint.

    Every AWS variable of the machine is taken away first, so that no test can reach a real bucket.
    """
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    # The servers of one process share their buckets.
    bucket = f"lake-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    try:
        yield f"s3://{bucket}/some/prefix"
    finally:
        server.stop()


def stored(lake: str) -> dict[str, bytes]:
    """Every file of the lake with its content."""
    if not lake.startswith("s3://"):
        paths = sorted(path for path in Path(lake).rglob("*") if path.is_file())
        return {str(path.relative_to(lake)): path.read_bytes() for path in paths}
    client = boto3.client("s3")
    bucket, _, prefix = lake.removeprefix("s3://").partition("/")
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]
    return {key.removeprefix(prefix + "/"): client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}
