"""Scratch directories go with their process, those of a process that was killed with the next one."""

import subprocess
import sys
from pathlib import Path

from user_pipeline.engines.duckdb import Engine
from user_pipeline.engines.scratch import Scratch
from user_pipeline.settings import Settings

HOLDER = """
import sys
from pathlib import Path
from user_pipeline.engines.scratch import Scratch
made = Scratch.make(Path(sys.argv[1]))
(made.path / "rows.parquet").write_bytes(bytes(1000))
print(made.path, flush=True)
sys.stdin.read()
"""


def holder(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has a scratch directory with a file in it, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    (tmp_path / "user-pipeline-of-someone").mkdir()
    (tmp_path / "user-pipeline-scratch-without-a-lock").mkdir()
    dead, left = holder(tmp_path)
    living, kept = holder(tmp_path)
    try:
        dead.kill()
        dead.wait()
        assert (left / "rows.parquet").exists()
        made = Scratch.make(tmp_path)
        assert not left.exists()
        assert (kept / "rows.parquet").exists()
        made.remove()
        assert {path.name for path in tmp_path.iterdir()} == {
            "user-pipeline-of-someone",
            "user-pipeline-scratch-without-a-lock",
            kept.name,
            f"{kept.name}.lock",
        }
    finally:
        living.kill()
        living.wait()


def test_a_link_in_the_place_of_a_lock_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    other = tmp_path / "other"
    other.write_text("kept")
    link = tmp_path / "scratch" / "user-pipeline-scratch-x.lock"
    link.symlink_to(other)
    (tmp_path / "scratch" / "user-pipeline-scratch-x").mkdir()
    Scratch.make(tmp_path / "scratch").remove()
    assert other.read_text() == "kept"
    assert link.is_symlink()
    assert (tmp_path / "scratch" / "user-pipeline-scratch-x").is_dir()


def test_an_engine_sweeps_and_leaves_nothing(tmp_path: Path) -> None:
    dead, left = holder(tmp_path)
    dead.kill()
    dead.wait()
    with Engine(Settings.from_environment({"USER_PIPELINE_SCRATCH_DIR": str(tmp_path)})) as engine:
        folder = engine.new_scratch("rows")
        assert not left.exists()
        assert oct(engine.scratch.stat().st_mode & 0o777) == oct(0o700)
        (folder / "file").touch()
        with engine.connect() as closed:
            closed.execute("select 1")
    assert list(tmp_path.iterdir()) == []
