"""What is published: a wheel and a source distribution that hold everything, and work without the checkout."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.servers import discard

BIN = Path(sys.executable).parent
VERSION = re.search(r'^version = "(.*)"', (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE)[1]  # type: ignore[index]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from the source distribution, as on an index."""
    directory = tmp_path_factory.mktemp("dist")
    # The build tools are of the locked environment: nothing is downloaded.
    command: list[str | Path] = [sys.executable, "-m", "build", "--no-isolation", "--outdir", directory, CHECKOUT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


@pytest.fixture(scope="module")
def installed(built: Path) -> Iterator[Path]:
    """A new environment with the wheel in it; its dependencies are lent by the one that runs the tests."""
    import tempfile

    directory = Path(tempfile.mkdtemp(prefix="up-"))
    directory.chmod(0o755)
    environment = directory / "venv"
    subprocess.run([BIN / "uv", "venv", "--quiet", "--python", sys.executable, environment], check=True)
    [wheel] = built.glob("*.whl")
    python = environment / "bin" / "python"
    subprocess.run([BIN / "uv", "pip", "install", "--quiet", "--python", python, "--no-deps", wheel], check=True)
    # A directory that is named in a .pth file is searched, but its own .pth files (our checkout's) are not read.
    [site_packages] = environment.glob("lib/python*/site-packages")
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    yield environment
    discard(directory)


def test_both_distributions_pass_what_the_index_asks(built: Path) -> None:
    files = sorted(path.name for path in built.iterdir())
    assert files == [f"user_pipeline-{VERSION}-py3-none-any.whl", f"user_pipeline-{VERSION}.tar.gz"]
    checked = subprocess.run(
        [BIN / "twine", "check", "--strict", *built.iterdir()], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    package = CHECKOUT / "user_pipeline"
    expected = {
        str(path.relative_to(CHECKOUT))
        for path in package.rglob("*")
        if path.is_file() and path.suffix in (".jinja", ".py", ".sql", ".typed")
    }
    assert any(name.endswith(".sql") for name in expected)
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected


def test_the_source_distribution_can_be_worked_on(built: Path) -> None:
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {name.split("/", 1)[1] for name in opened.getnames()}
    wanted = [
        "Makefile",
        "requirements.lock",
        "requirements-dev.lock",
        "dagster.yaml",
        "deploy/docker-compose.yaml",
        "user_pipeline_tests/s3.py",
    ]
    assert held >= {*wanted, "docs/deploy.md", "CHANGELOG.md", "LICENSE", "benchmarks/fake_users.py"}
    assert not [name for name in held if name.startswith(("data/", ".venv/")) or name.endswith((".pyc", ".env"))]


def test_the_command_and_the_pipeline_work_from_the_wheel(
    installed: Path, place: Path, clean_environment: dict[str, str]
) -> None:
    environment = {**clean_environment, "PATH": f"{installed / 'bin'}:{os.environ['PATH']}"}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run("python", "-c", "import user_pipeline; print(user_pipeline.__file__)").strip()
    assert Path(where).is_relative_to(installed)
    assert "user-pipeline sample" in run("user-pipeline", "--help")
    assert "1 day from 2017-04-01" in run("user-pipeline", "sample", "--days=1", "--users=20", "--views-per-day=100")
    run(
        *("python", "-m", "dagster", "asset", "materialize", "-m", "user_pipeline.definitions"),
        *("--select", "*", "--partition", "2017-04-01"),
    )
    counted = run("user-pipeline", "psql", "-Atc", "select sum(count) > 50 from user_page_views")
    assert counted.strip() == "t"


def test_the_changelog_has_the_version() -> None:
    text = (CHECKOUT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d{2}-\d{2}))?$", text, re.MULTILINE)
    assert versions[0] == ("Unreleased", "")
    assert VERSION in {version for version, _ in versions}
    assert all(released for _, released in versions[1:])
