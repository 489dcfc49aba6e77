"""A full disk: the run fails and says so, what was there stays, and nothing is left behind that fills it further."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from user_pipeline_tests.faults.forked import Parent, Run
from user_pipeline_tests.faults.states import DAY, State, assert_exact, assert_old_or_new
from user_pipeline_tests.platform import Platform

ROWS = 5_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 kB, where mounting one is allowed."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def old_and_new(parent: Parent, platform: Platform) -> tuple[State, State]:
    old, new = State.number(0, rows=ROWS), State.number(1, rows=ROWS)
    old.deliver(platform)
    [ended] = parent.run(platform.environment, Run(DAY))
    assert ended.code == 0, ended.output
    new.deliver(platform)
    return old, new


def mended(parent: Parent, platform: Platform, state: State) -> None:
    [ended] = parent.run(platform.environment, Run(DAY))
    assert ended.code == 0, ended.output
    assert_exact(platform, state)
    assert list((platform.root / "scratch").iterdir()) == []


def test_a_scratch_directory_on_a_full_disk(parent: Parent, platform: Platform, small_disk: Path) -> None:
    old, new = old_and_new(parent, platform)
    [ended] = parent.run(platform.environment, Run(DAY, environment={"USER_PIPELINE_SCRATCH_DIR": str(small_disk)}))
    assert ended.code == 1
    assert "No space left on device" in ended.output
    assert list(small_disk.iterdir()) == []
    assert_old_or_new(platform, old, new)
    mended(parent, platform, new)


@pytest.mark.parametrize("limit", [500, 2_000, 4_000])
def test_no_file_can_grow(parent: Parent, platform: Platform, limit: int) -> None:
    """Scratch and lake alike, wherever that strikes: RLIMIT_FSIZE needs no rights."""
    old, new = old_and_new(parent, platform)
    [ended] = parent.run(platform.environment, Run(DAY, file_limit=limit))
    assert ended.code == 1
    assert "File too large" in ended.output
    assert_old_or_new(platform, old, new)
    assert [name for name in platform.lake_files() if "#" in name] == []
    mended(parent, platform, new)
