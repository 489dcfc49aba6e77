"""An object store in trouble: most of it is waited for inside a run, the rest mends with the next one."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import obstore.store
import pytest

from user_pipeline.resources import object_store
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline.resources.object_store import ObjectStoreUnavailableError
from user_pipeline.resources.storage import ObjectStorage
from user_pipeline.settings import Settings
from user_pipeline_tests.faults.proxy import KINDS, Proxy, Trouble, before
from user_pipeline_tests.faults.states import DAY, State, assert_exact, assert_old_or_new
from user_pipeline_tests.platform import Platform
from user_pipeline_tests.s3 import Endpoint, s3_endpoint

ASSETS = [
    "raw_user_updates", "raw_page_views", "user_updates", "page_views", "users", "user_page_views",
    "user_page_views_csv",
]  # fmt: skip
REQUESTS: dict[str, Callable[[str, str], bool]] = {
    "listing the source": lambda method, path: method == "GET" and path.startswith("/source?"),
    "reading an object": lambda method, path: method == "GET" and path.startswith("/source/PageViews/a"),
    "writing a part file": lambda method, path: method == "PUT" and "/raw/user_updates/" in path,
    "writing rejects": lambda method, path: method == "PUT" and "/rejected/" in path,
    "writing a log": lambda method, path: method == "PUT" and "/log/staging/" in path,
    "reading part files to write a day anew": lambda method, path: method == "GET" and "/raw/page_views/" in path,
    "writing a cleaned day": lambda method, path: method == "PUT" and "/cleaned/page_views/" in path,
    "reading a raw day": lambda method, path: method == "GET" and "/raw/user_updates/" in path,
    "writing an export": lambda method, path: method == "PUT" and "/exports/" in path,
}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    with s3_endpoint(monkeypatch, "source", "lake") as endpoint:
        yield endpoint


@pytest.fixture
def proxy(s3: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The patience of production, with waits of a test."""
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda _, attempt_num: 0.01 * attempt_num)
    backoff = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=20), "base": 2}
    monkeypatch.setattr(object_store, "_RETRY", {**object_store._RETRY, "backoff": backoff})
    monkeypatch.setattr(object_store, "_PROBE_RETRY", {**object_store._PROBE_RETRY, "backoff": backoff})
    with before(s3.url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait a second for an answer, not half a minute."""
    original = obstore.store.S3Store

    def impatient(*arguments: Any, client_options: dict[str, Any], **options: Any) -> Any:
        return original(*arguments, client_options={**client_options, "timeout": timedelta(seconds=1)}, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(obstore.store, "S3Store", impatient)


@pytest.fixture
def on_s3(
    proxy: Proxy, postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    locations = {"USER_PIPELINE_SOURCE_URL": "s3://source", "USER_PIPELINE_LAKE_URL": "s3://lake"}
    with Platform.create(postgres, tmp_path / "on s3", **locations) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        assert proxy.url
        yield made


def deliver(s3: Endpoint, state: State) -> None:
    for key, content in {**state.views, **state.updates}.items():
        s3.client.put_object(Bucket="source", Key=key, Body=content)


def run(platform: Platform) -> dg.ExecuteInProcessResult:
    return platform.materialize(DAY, select=ASSETS, checks=False, raise_on_error=False)


@pytest.mark.parametrize("kind", KINDS)
def test_trouble_for_a_while_is_survived_within_the_run(
    on_s3: Platform, s3: Endpoint, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each request of :data:`REQUESTS` meets it once, all of them in one run."""
    old, new = State.number(0), State.number(1)
    deliver(s3, old)
    assert run(on_s3).success
    deliver(s3, new)
    if kind == "silent":
        hurry(monkeypatch)
    proxy.troubles = [Trouble(kind, matches) for matches in REQUESTS.values()]
    result = run(on_s3)
    assert {name: t.happened for name, t in zip(REQUESTS, proxy.troubles, strict=True)} == dict.fromkeys(REQUESTS, 1)
    assert result.success
    assert_exact(on_s3, new)


@pytest.mark.parametrize("kind", ["503", "reset"])
def test_trouble_that_lasts_fails_the_run_and_the_next_one_mends_it(
    on_s3: Platform,
    s3: Endpoint,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """Half of the requests each."""
    monkeypatch.setattr(object_store, "_RETRY", {**object_store._RETRY, "max_retries": 1})
    old = State.number(0)
    deliver(s3, old)
    assert run(on_s3).success
    for number, name in enumerate(list(REQUESTS)[kind == "503" :: 2], start=1):
        new = State.number(number)
        deliver(s3, new)
        proxy.troubles = [Trouble(kind, REQUESTS[name], times=1_000)]
        # An object that is not given four times keeps nothing from being done; the next run asks for it again.
        assert run(on_s3).success is (name == "reading an object"), name
        # Both tries of the store's client, in all four of Dagster's; a run that finds the door shut is not tried again.
        assert proxy.troubles[0].happened >= (4 if name == "listing the source" else 8), name
        proxy.troubles = []
        if name != "reading an object":
            assert_old_or_new(on_s3, old, new)
        assert run(on_s3).success
        assert_exact(on_s3, new)
        old = new


@pytest.mark.parametrize("kind", ["500", "503", "truncated"])
def test_a_store_in_trouble_when_a_run_begins_is_not_taken_for_a_wrong_setting(
    s3: Endpoint, proxy: Proxy, kind: str
) -> None:
    environment = {"USER_PIPELINE_LAKE_URL": "s3://lake"}
    proxy.troubles = [Trouble(kind, lambda method, _: method == "GET", times=1 if kind == "truncated" else 2)]
    assert s3.url
    with pytest.raises(ObjectStoreUnavailableError, match=rf"^USER_PIPELINE_LAKE_URL=s3://lake: .*{proxy.url}"):
        assert ObjectStorage(Settings.from_environment(environment)).lake
    assert ObjectStorage(Settings.from_environment(environment)).lake
