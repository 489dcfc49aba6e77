"""The examples of docs/lake-files.md."""

import re
from datetime import date
from typing import Any

import pytest
from click.testing import CliRunner

from user_pipeline.cli.main import main
from user_pipeline.lake import files
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.platform import Platform, view

DAYS = ["2017-04-01", "2017-04-02"]


@pytest.fixture
def two_days(platform: Platform) -> Platform:
    platform.put_views("PageViews/a", [view(f"{day}T10:00:00", url) for day in DAYS for url in ("/a", "/b")])
    assert platform.materialize(DAYS[0], DAYS[1]).success
    return platform


@pytest.mark.usefixtures("two_days")
def test_the_examples_run_as_they_stand() -> None:
    page = (CHECKOUT / "docs/lake-files.md").read_text()
    first, *others = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {}
    exec(first, found)  # noqa: S102 - the page's own code
    assert len(found["paths"]) == 2
    read = []
    for example in others:
        [library] = re.findall(r"(?:import|from) (\w+)", example)[:1]
        if library == "pyspark":
            # Only its client is installed, which needs a server.
            continue
        *statements, expression = example.strip().splitlines()
        exec("\n".join(statements), found)  # noqa: S102
        result = eval(expression, found)  # noqa: S307
        rows = result.fetchall() if library == "duckdb" else result.rows() if library == "polars" else result.items()
        assert sorted((url, int(views)) for url, views in rows) == [("/a", 2), ("/b", 2)]
        read.append(library)
    assert {"duckdb", "polars", "pandas"} <= set(read)


def test_the_command_and_the_function_name_the_same_files(two_days: Platform) -> None:
    def command(*arguments: str) -> list[str]:
        done = CliRunner().invoke(main, ["files", *arguments])
        assert done.exit_code == 0, done.output
        return done.output.splitlines()

    both = files("page_views")
    assert [str(two_days.root / "lake" / path) for path in two_days.lake_files("cleaned/page_views")] == both
    assert command("page_views") == both == files("page_views", DAYS[0], date.fromisoformat(DAYS[1]))
    assert command("page_views", "--day", DAYS[1]) == both[1:] == files("page_views", first=DAYS[1])
    assert command("page_views", "--to", DAYS[0]) == both[:1]
    for asset in ("raw_page_views", "users", "user_page_views", "page_recommendations"):
        assert files(asset)


@pytest.mark.usefixtures("two_days")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["page_veiws"], "no partition of an asset 'page_veiws'"),
        (["page_views", "--day", "2017-04-01", "--to", "2017-04-02"], "--day cannot be used with"),
        (["page_views", "--from", "2017-04-02", "--to", "2017-04-01"], "lies before --from"),
    ],
)
def test_wrong_names_and_options_are_told(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["files", *arguments])
    assert done.exit_code != 0
    assert said in done.output
