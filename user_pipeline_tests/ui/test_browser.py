"""The UI as its users see it: a real browser, web server and daemon, on the embedded stack.

``make screenshots`` runs these tests and keeps what they see for the documentation.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest
import requests
from obstore.store import LocalStore
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from user_pipeline.local.sample_logs import SampleLogs
from user_pipeline_tests.local.conftest import discard

CHECKOUT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
PATIENCE = 150.0
FAKE_USERS = "/locations/__repository__@user_pipeline/asset-groups/fake_users/lineage"
GROUPS = ("source", "raw", "cleaned", "marts", "exports")

pytestmark = [
    pytest.mark.timeout(600),
    # Where tests decide about a change they are never left out.
    pytest.mark.skipif(not CHROMIUM and "CI" not in os.environ, reason="chromium is not installed"),
]


@dataclass(frozen=True)
class Stack:
    """`dagster dev` on a data directory of its own."""

    url: str
    data: Path
    environment: dict[str, str]
    log: Path


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    home = Path(tempfile.mkdtemp(prefix="up-"))
    home.chmod(0o755)
    shutil.copy(CHECKOUT / "dagster.yaml", home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {**kept, "USER_PIPELINE_DATA_DIR": str(home / "data"), "DAGSTER_HOME": str(home)}
    made = Stack(f"http://127.0.0.1:{port}", home / "data", environment, home / "dagster.log")
    command = [_program("dagster"), "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
    with made.log.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=CHECKOUT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _until(lambda: _answers(made.url), made)
        yield made
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        discard(home)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    quiet = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet.split())
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1600, "height": 900}, base_url=stack.url)
    # Else a new instance begins with a dialog about newsletters.
    opened.add_init_script("""localStorage.setItem("communityNux", JSON.stringify("1"))""")
    opened.set_default_timeout(PATIENCE * 1000)
    expect.set_options(timeout=PATIENCE * 1000)
    yield opened
    opened.close()


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Keeps what a page shows, if it is asked for."""
    directory = request.config.getoption("--screenshots")

    def shoot(page: Page, name: str) -> None:
        if directory:
            page.mouse.move(0, 0)
            page.wait_for_timeout(2_000)  # pictures, edges and plots move into place
            page.screenshot(path=Path(directory) / f"{name}.png")

    return shoot


def test_a_partition_is_materialised_from_the_ui_and_shows_its_report(
    page: Page, stack: Stack, keep: Callable[[Page, str], None]
) -> None:
    _materialise(page, "2017-04-02", "Launch 1 run")
    page.goto("/runs")
    expect(page.locator("body")).to_contain_text("2017-04-02")
    _reload_until(page, stack, lambda: page.get_by_text("Success", exact=True).first)
    page.goto("/assets/fake_users_report?view=partitions&partition=2017-04-02")
    expect(page.get_by_text("Materialized", exact=True).first).to_be_visible()
    expect(page.get_by_text("total_raw_users").first).to_be_visible()
    page.get_by_role("button", name="Show markdown").or_(page.get_by_text("[Show Markdown]")).first.click()
    picture = page.locator("img[src^='data:image/png']").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 300
    expect(page.get_by_text("Total Raw Users: 100")).to_be_visible()
    keep(page, "fake-users-report")


def test_a_backfill_of_two_days_is_launched_and_completes(page: Page, stack: Stack) -> None:
    _materialise(page, "[2017-04-03...2017-04-04]", "Launch backfill")
    page.goto("/runs?tab=backfills")
    _reload_until(page, stack, lambda: page.get_by_text("Completed").or_(page.get_by_text("Success", exact=True)).first)
    page.goto("/assets/fake_users_report?view=partitions")
    expect(page.get_by_text("Materialized (3)")).to_be_visible()


def test_logs_that_arrive_are_in_the_tables_and_their_metadata_in_the_ui(
    page: Page, stack: Stack, keep: Callable[[Page, str], None]
) -> None:
    source = stack.data / "source"
    for key, content in SampleLogs(days=2, users=300, views_per_day=2_000, start=date(2017, 4, 1), seed=1).objects():
        LocalStore(source, mkdir=True).put(key, content)
    # Nobody launches anything: the sensor does.
    page.goto("/assets/recommendation_quality?view=partitions&partition=2017-04-02")
    _reload_until(page, stack, lambda: page.get_by_text("Materialized", exact=True).first)
    page.goto("/assets/page_views?view=partitions&partition=2017-04-02")
    for name in ("duplicate_rows", "other_environment_rows", "seconds_writing", "dagster/partition_row_count"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    page.goto("/assets/user_page_views?view=overview")
    for text in ("Who looked at which page", "last_viewed", "personal_data", "Freshness policy"):
        expect(page.get_by_text(text).first).to_be_visible()
    keep(page, "user-page-views")


def test_the_graph_reads_from_left_to_right(page: Page, keep: Callable[[Page, str], None]) -> None:
    page.goto("/asset-groups")
    nodes = [page.locator("foreignObject").get_by_text(group, exact=True).first for group in GROUPS]
    for node in nodes:
        expect(node).to_be_visible()
    boxes = [node.bounding_box() for node in nodes]
    left = [box["x"] for box in boxes if box]
    assert len(left) == len(GROUPS)
    assert left == sorted(left)
    keep(page, "asset-groups")


def _materialise(page: Page, partitions: str, button: str) -> None:
    page.goto(FAKE_USERS)
    page.get_by_role("button", name="Materialize all").click()
    page.get_by_role("button", name="Show all partitions").click()
    selection = page.locator("[role=dialog] input, [class*=dialog] input").first
    selection.fill(partitions)
    selection.press("Enter")
    page.get_by_role("button", name=button).click()
    expect(page.get_by_role("button", name=button)).to_have_count(0)


def _reload_until(page: Page, stack: Stack, wanted: Callable[[], Locator]) -> None:
    """The UI polls too, but not every page and not often."""

    def there() -> bool:
        page.reload()
        page.wait_for_timeout(3_000)
        return wanted().is_visible()

    _until(there, stack)


def _until(condition: Callable[[], bool], stack: Stack) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, stack.log.read_text(errors="replace")[-5_000:]
        time.sleep(1)


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/server_info", timeout=5).ok
    except requests.ConnectionError:
        return False


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
