"""The UI as its users see it: a real browser, web server and daemon, on the embedded stack.

``make screenshots`` runs these tests and keeps what they see for the documentation.
"""

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from obstore.store import LocalStore
from playwright.sync_api import Browser, FloatRect, Locator, Page, Response, expect

from user_pipeline.cli.sample_logs import SampleLogs
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.servers import discard
from user_pipeline_tests.ui.conftest import CHROMIUM

PATIENCE = 400.0
"""Seconds for what may take long on a slow machine; what has failed is told at once."""
SHOWN = 60.0
"""Seconds for what the web server knows to be on the page."""
FAKE_USERS = "/locations/__repository__@user_pipeline/asset-groups/fake_users/lineage"
GROUPS = ("source", "raw", "cleaned", "marts", "exports")
ASSETS = (
    "source_user_updates",
    "source_page_views",
    "raw_user_updates",
    "raw_page_views",
    "user_updates",
    "page_views",
    "users",
    "user_page_views",
    "page_recommendations",
    "related_pages",
    "popular_pages",
    "recommendation_parameters",
    "recommendation_quality",
    "page_recommendations_csv",
    "traffic_report",
    "user_page_views_csv",
)
# The last two weeks: what the UI plots are the latest partitions.
DAYS = [datetime.now(UTC).date() - timedelta(days=ago) for ago in range(14, 0, -1)]
FIRST, SECOND, THIRD, *_, LAST = (day.isoformat() for day in DAYS)
ENDED = {"SUCCESS", "FAILURE", "CANCELED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED"}
# How many dots of a plot have the color of its line, neither gray nor transparent.
LINE = """canvas => {
  const dots = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let found = 0;
  for (let at = 0; at < dots.length; at += 4) found += dots[at + 3] > 128 && dots[at + 2] - dots[at] > 80;
  return found;
}"""
# What a page can ask of another site without that site's consent; says whether a websocket was opened.
FOREIGN_PAGE = """async ([ui, change]) => {
  const address = `${ui}/graphql?query=${encodeURIComponent(change)}`;
  const ask = (url, type, body) =>
    fetch(url, {method: "POST", mode: "no-cors", headers: {"Content-Type": type}, body}).catch(() => 0);
  await ask(address, "text/plain");
  await ask(`${ui}/graphql`, "text/plain; application/json", JSON.stringify({query: change}));
  await new Promise(ended => {
    const image = new Image();
    image.onload = image.onerror = ended;
    image.src = address;
  });
  await new Promise(ended => {
    const frame = document.body.appendChild(Object.assign(document.createElement("iframe"), {name: "hidden"}));
    const form = document.body.appendChild(document.createElement("form"));
    frame.onload = ended;
    Object.assign(form, {method: "post", action: address, target: "hidden"}).submit();
  });
  return await new Promise(ended => {
    const socket = new WebSocket(ui.replace("http", "ws") + "/graphql", "graphql-ws");
    socket.onopen = () => ended("open");
    socket.onerror = () => ended("refused");
  });
}"""

Keep = Callable[..., None]

pytestmark = [
    pytest.mark.timeout(600),
    # Where tests decide about a change they are never left out.
    pytest.mark.skipif(not CHROMIUM and "CI" not in os.environ, reason="chromium is not installed"),
]


@dataclass(frozen=True)
class Stack:
    """`user-pipeline up` on a data directory of its own."""

    url: str
    data: Path
    environment: dict[str, str]
    log: Path

    def graphql(self, query: str, **variables: Any) -> Any:
        answer = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=SHOWN
        ).json()
        assert not answer.get("errors"), answer
        return answer["data"]

    def run(self, *command: str) -> str:
        """One of the programs a user has, with the settings of this stack."""
        done = subprocess.run(
            [_program(command[0]), *command[1:]],
            cwd=CHECKOUT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-5_000:]
        return done.stdout

    def tail(self) -> str:
        """The end of what web server, daemon and runs have written."""
        return self.log.read_text(errors="replace")[-5_000:]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    home = Path(tempfile.mkdtemp(prefix="up-"))
    home.chmod(0o755)
    shutil.copy(CHECKOUT / "dagster.yaml", home)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {
        **kept,
        "USER_PIPELINE_DATA_DIR": str(home / "data"),
        "USER_PIPELINE_START_DATE": DAYS[0].isoformat(),
        "DAGSTER_HOME": str(home),
    }
    made = Stack(f"http://127.0.0.1:{port}", home / "data", environment, home / "dagster.log")
    command = [_program("user-pipeline"), "up", "--port", str(port)]
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


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1600, "height": 900}, base_url=stack.url)
    # Else a new instance begins with a dialog about newsletters.
    opened.add_init_script("""localStorage.setItem("communityNux", JSON.stringify("1"))""")
    opened.set_default_timeout(SHOWN * 1000)
    expect.set_options(timeout=SHOWN * 1000)
    yield opened
    opened.close()


@pytest.fixture
def keep(request: pytest.FixtureRequest) -> Keep:
    """Keeps what a page shows, or the part of it that some elements take up, if it is asked for."""
    directory = request.config.getoption("--screenshots")

    def shoot(page: Page, name: str, elements: Sequence[Locator] = ()) -> None:
        if directory:
            page.mouse.move(0, 0)
            page.wait_for_timeout(2_000)  # pictures, edges and plots move into place
            page.screenshot(path=Path(directory) / f"{name}.png", clip=_around(elements) if elements else None)

    return shoot


def test_the_ui_answers_on_loopback_only(stack: Stack) -> None:
    port = int(stack.url.rpartition(":")[2])
    # Another address of this machine, which only a server on all of them would answer at.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_a_partition_is_materialized_from_the_ui_and_shows_its_report(page: Page, stack: Stack, keep: Keep) -> None:
    launched = _materialize(page, FIRST, "Launch 1 run")
    assert launched["__typename"] == "LaunchRunSuccess", launched
    assert _end_of_run(stack, launched["run"]["id"]) == "SUCCESS", stack.tail()
    page.goto("/runs")
    expect(page.locator("body")).to_contain_text(FIRST)
    expect(page.get_by_text("Success", exact=True).first).to_be_visible()
    page.goto(f"/assets/fake_users_report?view=partitions&partition={FIRST}")
    expect(page.get_by_text("Materialized", exact=True).first).to_be_visible()
    expect(page.get_by_text("total_raw_users").first).to_be_visible()
    page.get_by_role("button", name="Show markdown").or_(page.get_by_text("[Show Markdown]")).first.click()
    picture = page.locator("img[src^='data:image/png']").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 300
    expect(page.get_by_text("Total Raw Users: 100")).to_be_visible()
    keep(page, "fake-users-report")


def test_a_backfill_of_two_days_is_launched_and_completes(page: Page, stack: Stack) -> None:
    launched = _materialize(page, f"[{SECOND}...{THIRD}]", "Launch backfill")
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    assert _end_of_backfill(stack, launched["backfillId"]) == "COMPLETED_SUCCESS", stack.tail()
    page.goto("/runs?tab=backfills")
    completed = page.get_by_text("Completed").or_(page.get_by_text("Success", exact=True))
    expect(completed.first).to_be_visible()
    page.goto("/assets/fake_users_report?view=partitions")
    # And the one of the test before.
    expect(page.get_by_text("Materialized (3)")).to_be_visible()


@pytest.fixture(scope="module")
def arrived(stack: Stack) -> None:
    """Two weeks of logs, in the tables. Nobody launches anything: the sensor does."""
    source = LocalStore(stack.data / "source", mkdir=True)
    for key, content in SampleLogs(days=len(DAYS), users=1_000, views_per_day=8_000, start=DAYS[0], seed=1).objects():
        source.put(key, content)

    def measured() -> bool:
        found = stack.graphql(
            """query ($last: [String!]) {
              runsOrError(filter: {statuses: [FAILURE, CANCELED]}) { ... on Runs { results { runId jobName } } }
              assetNodeOrError(assetKey: {path: ["traffic_report"]}) {
                ... on AssetNode { assetMaterializations(partitions: $last) { runId } }
              }
            }""",
            last=[LAST],
        )
        assert not found["runsOrError"]["results"], f"{found}\n{stack.tail()}"
        return bool(found["assetNodeOrError"]["assetMaterializations"])

    _until(measured, stack)


@pytest.mark.usefixtures("arrived")
def test_logs_that_arrive_are_in_the_tables_and_their_metadata_in_the_ui(page: Page, keep: Keep) -> None:
    page.goto(f"/assets/page_views?view=partitions&partition={LAST}")
    for name in ("duplicate_rows", "other_environment_rows", "seconds_writing", "dagster/partition_row_count"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    page.goto("/assets/user_page_views?view=overview")
    for text in ("Who looked at which page", "last_viewed", "personal_data", "Freshness policy"):
        expect(page.get_by_text(text).first).to_be_visible()
    keep(page, "user-page-views")


@pytest.mark.usefixtures("arrived")
def test_the_preview_shows_ten_rows_and_nobody(page: Page, stack: Stack) -> None:
    page.goto(f"/assets/users?view=partitions&partition={LAST}")
    preview = page.locator("table").filter(has=page.locator("th", has_text="user_id")).last
    expect(preview.locator("tbody tr")).to_have_count(10)
    for row in preview.locator("tbody tr").all():
        user, email, name, _ = row.locator("td").all_inner_texts()
        assert user.isdigit()
        assert re.fullmatch(r"\S…@…", email), email
        assert re.fullmatch(r"\S…", name), name
    # The addresses and names that these ten rows are of are nowhere on the page.
    shown = page.locator("body").inner_text()
    assert "@example.com" not in shown
    query = "select email, name from users order by user_id limit 10"
    rows = stack.run("user-pipeline", "psql", "--csv", "--tuples-only", "-c", query)
    people = list(csv.reader(io.StringIO(rows)))
    assert len(people) == 10
    assert not [text for person in people for text in person if " ".join(text.split()) in shown]


URLS = [
    "https://evil.example/login",
    "see www.evil.example now",
    "HTTP://EVIL.EXAMPLE/`a`|b",
    "[text](https://evil.example)",
    "<https://evil.example>",
    "![picture](https://evil.example/x.png)",
    "javascript:alert(1)",
    "/products/1/?q=*a*",
]
SHOW_URLS = """
import sys, dagster as dg
from user_pipeline.io_managers.metadata import preview
rows = [{"url": url} for url in sys.argv[1:]]
dg.DagsterInstance.get().report_runless_asset_event(
    dg.AssetMaterialization("links", metadata=preview(["url"], rows))
)
"""


def test_a_url_in_a_preview_is_shown_as_it_is_and_is_no_link(page: Page, stack: Stack) -> None:
    stack.run("python", "-c", SHOW_URLS, *URLS)
    page.goto("/assets/links?view=events")
    preview = page.locator("table").filter(has=page.locator("th", has_text="url")).last
    expect(preview.locator("tbody tr")).to_have_count(len(URLS))
    shown = preview.locator("tbody td").all_inner_texts()
    assert [text.strip() for text in shown] == URLS
    assert preview.locator("a, img").count() == 0


@pytest.mark.usefixtures("arrived")
def test_numbers_are_plotted_over_the_days(page: Page, stack: Stack, keep: Keep) -> None:
    # The sensor's run computed the last day; a plot needs all of them.
    stack.run(
        *("dagster", "asset", "materialize", "-m", "user_pipeline.definitions", "--select", "page_recommendations+"),
        *("--partition-range", f"{FIRST}...{LAST}"),
        *("--config-json", '{"ops": {"page_recommendations": {"config": {"all_days": true}}}}'),
    )
    page.set_viewport_size({"width": 1400, "height": 1800})
    page.goto("/assets/recommendation_quality?view=overview")
    page.get_by_role("button", name="Plots").click()
    plots = page.locator("div[style*='display: grid']").filter(has=page.locator("canvas"))
    for number in ("users", "hit_rate", "recall_at_3", "popularity_hit_rate", "coverage", "fallback_share"):
        plot = plots.locator("> div").filter(has=page.get_by_text(number, exact=True)).locator("canvas")
        expect(plot).to_be_visible()
        plot.scroll_into_view_if_needed()
        # Lines grow into place.
        _until(partial(_has_line, plot), stack)
    keep(page, "recommendation-quality", [plots])


@pytest.mark.usefixtures("arrived")
def test_the_graph_reads_from_left_to_right_and_opens(page: Page, keep: Keep) -> None:
    # Large enough for all to fit at the scale at which an asset shows more than its name.
    page.set_viewport_size({"width": 3000, "height": 1660})
    page.goto("/asset-groups")
    graph = page.locator("svg:has(foreignObject)")
    nodes = [graph.get_by_text(group, exact=True).first for group in GROUPS]
    for node in nodes:
        expect(node).to_be_visible()
    boxes = [node.bounding_box() for node in nodes]
    left = [box["x"] for box in boxes if box]
    assert len(left) == len(GROUPS)
    assert left == sorted(left)
    page.goto("/asset-groups?expanded=" + ",".join(f"global@global:{group}" for group in GROUPS))
    for asset in ASSETS:
        node = graph.locator("foreignObject").filter(has=page.get_by_text(asset, exact=True)).first
        expect(node).to_contain_text("Latest event")
    keep(page, "asset-graph", graph.locator("foreignObject").all())


@pytest.mark.usefixtures("arrived")
def test_a_check_that_fails_is_shown_as_failed(page: Page, stack: Stack) -> None:
    page.goto("/assets/users?view=checks&checkDetail=latest_email")
    result = page.locator("div").filter(has_text=re.compile(r"^Evaluation result(Passed|Failed)$")).last
    expect(result).to_have_text("Evaluation resultPassed")
    # Somebody's hand in the table.
    stack.run("user-pipeline", "psql", "-c", "update users set email = 'stale@example.com'")
    assert _run_checks(stack, "users", ["unique_key", "latest_email"]) == "FAILURE"
    page.reload()
    expect(result).to_have_text("Evaluation resultFailed")
    shown = page.locator("body")
    expect(shown).to_contain_text("This is a blocking asset check.")
    # Who, but not their addresses.
    expect(shown).to_contain_text(re.compile(r"user \d+; user \d+"))
    assert "@example.com" not in shown.inner_text()
    # The list of the asset's checks says so as well.
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()


def test_a_page_of_another_site_can_link_to_the_ui_and_do_nothing_else(
    page: Page, stack: Stack, tmp_path: Path
) -> None:
    stack.run(
        *("dagster", "asset", "materialize", "-m", "user_pipeline.definitions"),
        *("--select", "fake_users_archive", "--partition", LAST),
    )
    runs = "{ runsOrError(limit: 1) { ... on Runs { results { id } } } }"
    newest = stack.graphql(runs)
    [run] = newest["runsOrError"]["results"]
    change = f'mutation {{ deleteRun(runId: "{run["id"]}") {{ __typename }} }}'
    (tmp_path / "index.html").write_text(f'<a href="{stack.url}/runs">Runs</a>')
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path))) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        try:
            # Of another machine, and of another program on this one.
            for name in ("evil.example", "127.0.0.1"):
                page.goto(f"http://{name}:{site.server_port}/")
                assert page.evaluate(FOREIGN_PAGE, [stack.url, change]) == "refused"
                assert stack.graphql(runs) == newest
            page.get_by_text("Runs").click()
            expect(page.get_by_text(run["id"][:8]).first).to_be_visible()
        finally:
            site.shutdown()
    rebound = page.goto(stack.url.replace("127.0.0.1", "evil.example"))
    assert rebound
    assert rebound.status == 403
    ask = "query => fetch('/graphql', {method: 'POST', body: query, headers: {'Content-Type': 'application/json'}})"
    assert page.evaluate(f"query => ({ask})(query).then(answer => answer.status)", json.dumps({"query": change})) == 403
    assert stack.graphql(runs) == newest


def test_every_picture_of_the_documentation_is_made_here() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    kept = {one or other for one, other in re.findall(r'keep\(page, "([\w-]+)"|/ "([\w-]+)\.png"', tests)}
    pages = [CHECKOUT / "README.md", *(CHECKOUT / "docs").glob("*.md")]
    shown = {name for page in pages for name in re.findall(r"images/([\w-]+)\.png\)", page.read_text())}
    assert kept == shown == {path.stem for path in (CHECKOUT / "docs/images").iterdir()}
    assert shown >= {"asset-graph", "user-page-views", "fake-users-report"}


def _materialize(page: Page, partitions: str, button: str) -> dict[str, Any]:
    """Ask for partitions of the fake users as a user does; returns what the web server said to it."""
    page.goto(FAKE_USERS)
    page.get_by_role("button", name="Materialize all").click()
    selection = page.locator(
        "[role=dialog] input:not([type=checkbox]), [class*=dialog] input:not([type=checkbox])"
    ).first
    selection.fill(partitions)
    selection.press("Enter")
    # The button changes as soon as it is clicked. Leaving the page before the answer takes the request back.
    with page.expect_response(_launches) as answered:
        page.get_by_role("button", name=button).click()
    [launched] = answered.value.json()["data"].values()
    result: dict[str, Any] = launched
    return result


def _has_line(plot: Locator) -> bool:
    return int(plot.evaluate(LINE)) > 200


def _launches(response: Response) -> bool:
    return "/graphql" in response.url and "mutation Launch" in (response.request.post_data or "")


def _end_of_run(stack: Stack, run: str) -> str:
    return _end(stack, "query ($id: ID!) { it: runOrError(runId: $id) { ... on Run { status } } }", run)


def _end_of_backfill(stack: Stack, backfill: str) -> str:
    query = """query ($id: String!) {
      it: partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } }
    }"""
    return _end(stack, query, backfill)


def _end(stack: Stack, query: str, launched: str) -> str:
    """The status that a run or a backfill ends with, however it ends."""
    statuses: list[str] = []

    def ended() -> bool:
        statuses.append(stack.graphql(query, id=launched)["it"]["status"])
        return statuses[-1] in ENDED

    _until(ended, stack)
    return statuses[-1]


def _run_checks(stack: Stack, asset: str, checks: list[str]) -> str:
    """Run checks for the last day, and return the status their run ends with."""
    launched = stack.graphql(
        """mutation ($params: ExecutionParams!) {
          it: launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } }
        }""",
        params={
            "selector": {
                "repositoryLocationName": "user_pipeline",
                "repositoryName": "__repository__",
                "jobName": "daily_log_pipeline",
                "assetSelection": [],
                "assetCheckSelection": [{"assetKey": {"path": [asset]}, "name": check} for check in checks],
            },
            "runConfigData": {},
            "executionMetadata": {
                "tags": [
                    {"key": ASSET_PARTITION_RANGE_START_TAG, "value": LAST},
                    {"key": ASSET_PARTITION_RANGE_END_TAG, "value": LAST},
                ]
            },
        },
    )["it"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return _end_of_run(stack, launched["run"]["runId"])


def _around(elements: Sequence[Locator], margin: int = 12) -> FloatRect:
    """The part of a page that holds all of these."""
    boxes = [box for box in (element.bounding_box() for element in elements) if box]
    left, top = min(box["x"] for box in boxes), min(box["y"] for box in boxes)
    right = max(box["x"] + box["width"] for box in boxes)
    bottom = max(box["y"] + box["height"] for box in boxes)
    return {
        "x": left - margin,
        "y": top - margin,
        "width": right - left + 2 * margin,
        "height": bottom - top + 2 * margin,
    }


def _until(condition: Callable[[], bool], stack: Stack) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, stack.tail()
        time.sleep(1)


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/server_info", timeout=5).ok
    except requests.ConnectionError:
        return False


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
