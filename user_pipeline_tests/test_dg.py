"""Dagster's command line `dg` on a copy of the project."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import user_pipeline

CHECKOUT = Path(user_pipeline.__file__).parents[1]


def test_an_asset_that_dg_scaffolds_is_part_of_the_code_location(tmp_path: Path) -> None:
    project, home = tmp_path / "project", tmp_path / "home"
    shutil.copytree(CHECKOUT / "user_pipeline", project / "user_pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", project)
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    # The environment of the tests holds the checkout; the copy goes first.
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(project),
        "HOME": str(home),
        "DAGSTER_HOME": str(home),
    }

    def dg(*arguments: str) -> str:
        done = subprocess.run(
            ["dg", *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    dg("scaffold", "defs", "dagster.asset", "some/new_asset.py")
    assert (project / "user_pipeline" / "defs" / "some" / "new_asset.py").is_file()
    assets = {asset["asset_key"] for asset in json.loads(dg("list", "defs", "--json"))["assets"]}
    assert {"new_asset", "user_page_views"} <= assets
