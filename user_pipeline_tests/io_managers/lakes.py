"""Lakes to test against."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest

from user_pipeline.engines.duckdb import Engine
from user_pipeline.io_managers.files import FilesIOManager
from user_pipeline.lake.lake import Lake
from user_pipeline.resources.postgres import Databases
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.settings import Settings
from user_pipeline_tests.s3 import s3_endpoint


@contextmanager
def bucket_lake(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A lake under a prefix of a new bucket, on a real HTTP endpoint."""
    with s3_endpoint(monkeypatch, "lake"):
        yield "s3://lake/some/prefix"


@contextmanager
def file_resources(lake: str, scratch: Path) -> Iterator[dict[str, Any]]:
    """What assets that are files need: the engine, and the IO manager of a lake. No database is reached."""
    settings = Settings.from_environment({"USER_PIPELINE_LAKE_URL": lake, "USER_PIPELINE_SCRATCH_DIR": str(scratch)})
    with Engine(settings) as engine:
        whole = Lake(ObjectStorage(settings), Databases(settings))
        yield {"engine": engine, "files_io_manager": FilesIOManager(lake=whole, engine=engine)}


def stored(lake: str) -> dict[str, bytes]:
    """Every file of the lake with its content."""
    if not lake.startswith("s3://"):
        paths = sorted(path for path in Path(lake).rglob("*") if path.is_file())
        return {str(path.relative_to(lake)): path.read_bytes() for path in paths}
    client = boto3.client("s3")
    bucket, _, prefix = lake.removeprefix("s3://").partition("/")
    keys = [item["Key"] for item in client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]
    return {key.removeprefix(prefix + "/"): client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}
