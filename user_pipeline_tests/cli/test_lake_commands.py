"""What the command says of the objects that were read, and of what nothing refers to."""

import json
import os
import subprocess
import sys
import time

from click.testing import CliRunner

from user_pipeline.cli.main import main
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.platform import Platform, view


def run(*arguments: str) -> list[str]:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_objects_are_listed_with_what_they_brought(platform: Platform) -> None:
    platform.put_views("PageViews/a", [view("2017-04-01T00:00:00"), view("2017-04-03T00:00:00"), "broken"])
    platform.put_views("PageViews/b", [view("2017-04-02T00:00:00")] * 2)
    platform.put("PageViews/cut.gz", b"\x1f\x8b\x08")
    assert run("objects") == []
    platform.materialize("2017-04-01", select="raw_page_views", raise_on_error=False)
    first, second, cut = run("objects")
    assert first == "page_views  PageViews/a  2 rows  1 rejected  2017-04-01...2017-04-03"
    assert second == "page_views  PageViews/b  2 rows  0 rejected  2017-04-02...2017-04-02"
    assert run("objects", "--day", "2017-04-03") == [
        "page_views  PageViews/a  1 rows  1 rejected  2017-04-01...2017-04-03"
    ]
    assert run("objects", "--unread") == [cut]
    assert cut.startswith("page_views  PageViews/cut.gz  0 rows  0 rejected  no day  ")


def test_vacuum_says_what_it_removed(platform: Platform) -> None:
    for url in ("/a", "/b"):
        platform.put_views("PageViews/a", [view("2017-04-01T00:00:00", url)])
        platform.materialize("2017-04-01", select="raw_page_views")
    assert run("vacuum")[1] == "page_views: removed 0 files of 0.0 MB"
    three_days_ago = time.time() - 3 * 86400
    for path in platform.lake_files("fragments"):
        os.utime(platform.root / "lake" / path, (three_days_ago, three_days_ago))
    assert run("vacuum")[1] == "page_views: removed 1 files of 0.0 MB"
    assert len(platform.lake_files("fragments")) == 1


def test_a_hundred_calls_end_as_they_should(platform: Platform) -> None:
    platform.put_views("PageViews/a", [view("2017-04-01T00:00:00"), view("2017-04-03T00:00:00"), "broken"])
    platform.put_views("PageViews/b", [view("2017-04-02T00:00:00")] * 2)
    platform.materialize("2017-04-01", select="raw_page_views", checks=False)
    calls = [["objects"], ["vacuum"]] * 50
    ended = subprocess.run(
        [sys.executable, "-m", "user_pipeline_tests.cli.forked", json.dumps(calls)],
        stdout=subprocess.PIPE,
        check=True,
        cwd=CHECKOUT,
        # These would start threads when they are imported, and a fork has none.
        env={**os.environ, **platform.environment, "ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert json.loads(ended.stdout) == {"codes": [0] * 100, "said": ""}
