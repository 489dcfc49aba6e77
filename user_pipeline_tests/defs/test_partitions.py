"""A range of days that ends before it begins is refused, at once and with the one that would be right."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import dagster as dg
import pytest

from user_pipeline.defs.partitions import DAILY, ReversedRangeError
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.platform import LOG_PIPELINE, Platform

SENTENCE = "the partition range 2017-04-05...2017-04-02 ends before it begins; 2017-04-02...2017-04-05 is the one"


def test_the_command_line_makes_no_run_of_a_reversed_range(
    place: Path, clean_environment: dict[str, str], query: Callable[..., list[tuple[object, ...]]]
) -> None:
    shutil.copy(CHECKOUT / "dagster.yaml", place)
    dagster = str(Path(sys.executable).with_name("dagster"))
    materialize = [dagster, "asset", "materialize", "-m", "user_pipeline.definitions", "--select", "*"]
    done = subprocess.run(
        [*materialize, "--partition-range", "2017-04-05...2017-04-02"],
        cwd=place,
        env=clean_environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert SENTENCE in done.stderr.splitlines()[-1]
    assert query(EmbeddedPostgres(place / "data").url("dagster"), "select * from runs") == []


@pytest.mark.parametrize("select", [LOG_PIPELINE, "group:fake_users", "group:marts"])
def test_nothing_is_done_for_a_reversed_range(platform: Platform, select: str | Sequence[str]) -> None:
    with pytest.raises(ReversedRangeError, match=SENTENCE):
        platform.materialize("2017-04-05", "2017-04-02", select=select)
    assert platform.lake_files() == []


def test_a_step_that_is_asked_for_a_reversed_range_is_not_tried_again() -> None:
    with pytest.raises(dg.Failure) as raised:
        DAILY.get_partition_keys_in_range(dg.PartitionKeyRange("2017-04-03", "2017-04-02"))
    assert raised.value.allow_retries is False
    assert str(raised.value.description).startswith("the partition range 2017-04-03...2017-04-02 ends before it begins")


def test_a_range_of_one_day_and_of_several_are_as_dagster_has_them() -> None:
    one, several = dg.PartitionKeyRange("2017-04-02", "2017-04-02"), dg.PartitionKeyRange("2017-04-30", "2017-05-01")
    assert DAILY.get_partition_keys_in_range(one) == ["2017-04-02"]
    assert DAILY.get_partition_keys_in_range(several) == ["2017-04-30", "2017-05-01"]
