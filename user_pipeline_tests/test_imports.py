"""What the libraries of the package need to be imported, beside what the contracts of import-linter say."""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import user_pipeline
from user_pipeline.ingest.feeds import FEEDS
from user_pipeline.resources.storage import SOURCE_FOLDERS

CHECKOUT = Path(user_pipeline.__file__).parents[1]


def libraries() -> list[str]:
    """The modules that do without Dagster, by the contract that says so."""
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [names] = [contract["source_modules"] for contract in contracts if contract["id"] == "dagster"]
    modules = []
    for name in names:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        path = Path(spec.origin)
        files = path.parent.rglob("*.py") if path.name == "__init__.py" else [path]
        modules += [".".join(file.relative_to(CHECKOUT).with_suffix("").parts) for file in sorted(files)]
    return [module.removesuffix(".__init__") for module in modules]


def test_the_libraries_can_be_imported_where_there_is_no_dagster(tmp_path: Path) -> None:
    modules = libraries()
    assert {"user_pipeline.errors", "user_pipeline.ingest.reader", "user_pipeline.recommender.weights"} < {*modules}
    code = f"""
import importlib, sys
from importlib.abc import MetaPathFinder
class NoDagster(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("dagster"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoDagster())
for module in {modules}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_feed_has_a_folder_in_the_source() -> None:
    assert {feed.name: feed.folder for feed in FEEDS} == SOURCE_FOLDERS
