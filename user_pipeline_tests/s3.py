"""An S3 endpoint on this machine, for tests of what is kept in a bucket."""

import contextlib
import logging
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer


class Endpoint:
    """A running endpoint.

    Attributes:
        url: what ``AWS_ENDPOINT_URL`` is set to.
        client: a client for it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: Any = boto3.client("s3")

    def keys(self, bucket: str) -> list[str]:
        """Every key of a bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]


@contextlib.contextmanager
def s3_endpoint(patch: pytest.MonkeyPatch, *buckets: str) -> Iterator[Endpoint]:
    """A new endpoint with these buckets, and the standard variables that lead to it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    try:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        endpoint = Endpoint(url)
        for bucket in buckets:
            endpoint.client.create_bucket(Bucket=bucket)
        yield endpoint
    finally:
        # moto keeps its buckets in the process, where the next endpoint would find them.
        request = urllib.request.Request(f"{url}/moto-api/reset", method="POST")  # noqa: S310 - it is http
        urllib.request.urlopen(request).close()  # noqa: S310
        server.stop()
