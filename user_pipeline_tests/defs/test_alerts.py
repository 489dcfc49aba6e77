"""Alerts of real runs, posted to a real HTTP server: what they say, and that nothing suffers from a bad one."""

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest

from user_pipeline import settings
from user_pipeline.definitions import defs
from user_pipeline.defs.automation import alerts
from user_pipeline.defs.automation.alerts import failed_checks, failed_runs, message, post
from user_pipeline.setting_values import Webhook
from user_pipeline.settings import Settings
from user_pipeline_tests.platform import Platform, update, view

SECRET = "/services/T0/B0/not-to-be-seen"  # noqa: S105 - it must not be shown
UI = "https://dagster.example.com/prod"


class Hook(http.server.ThreadingHTTPServer):
    """Takes alerts; answers what it is told, in order, the last one for ever after."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[Any] = []
        self.requests: list[tuple[str, str | None]] = []
        self.answers = [200]
        self.pause = 0.0
        self.url = f"http://127.0.0.1:{self.server_port}{SECRET}"

    def texts(self) -> list[str]:
        return [body["text"] for body in self.bodies]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        self.server.requests.append((self.path, self.headers["Content-Type"]))
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.pause)
        answers = self.server.answers
        code = answers.pop(0) if len(answers) > 1 else answers[0]
        if code == 200:
            self.server.bodies.append(body)
        self.send_response(code)
        if code == 302:
            self.send_header("Location", f"/elsewhere{SECRET}")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    with Hook() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def alerting(hook: Hook, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A platform whose alerts go to ``hook``."""
    monkeypatch.setenv("USER_PIPELINE_ALERT_WEBHOOK_URL", hook.url)
    monkeypatch.setenv("USER_PIPELINE_UI_URL", UI + "/")
    settings.current.cache_clear()
    return platform


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def alert(result: dg.ExecuteInProcessResult, instance: dg.DagsterInstance) -> None:
    """What the daemon has the sensors do about a run that ended."""
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    sensor: Callable[..., Any] = failed_checks if result.success else failed_runs
    event = result.get_run_success_event() if result.success else result.get_run_failure_event()
    context = dg.build_run_status_sensor_context(
        sensor_name="alerts",
        dagster_event=event,
        dagster_instance=instance,
        dagster_run=run,
        repository_def=defs.get_repository_def(),
    )
    sensor(context if result.success else context.for_run_failure())


def test_a_failed_run_says_what_failed_for_which_day_why_and_where_to_look(
    alerting: Platform, hook: Hook, instance: dg.DagsterInstance
) -> None:
    alerting.put_views("PageViews/a", [view("2017-04-01T10:00:00")])
    with alerting.staging.transaction() as transaction:
        transaction.execute("create table public.page_views (somebody text)")
    result = alerting.materialize("2017-04-01", raise_on_error=False, instance=instance)
    alert(result, instance)
    assert hook.requests == [(SECRET, "application/json")]
    [text] = hook.texts()
    assert text.startswith(
        ":red_circle: *test_job* failed\n"
        "*Partition:* 2017-04-01\n"
        "*Asset:* page_views\n"
        "*Error:* ```the table public.page_views does not fit what is to be written: the table lacks ts"
    )
    assert text.endswith(f"\n<{UI}/runs/{result.run_id}|Open the run>")
    assert "Traceback" not in text


@pytest.mark.usefixtures("alerting")
def test_a_run_of_many_failures_is_one_alert_that_names_the_first_ones(
    hook: Hook, instance: dg.DagsterInstance
) -> None:
    @dg.multi_asset(specs=[dg.AssetSpec(["deep", f"asset_{n}"]) for n in range(2)], name="op_of_two")
    def two() -> tuple[None, None]:
        raise ValueError("both at once\n\nbecause of <a@example.com> & " + "x" * 10_000)

    def failing(number: int) -> dg.AssetsDefinition:
        @dg.asset(name=f"asset_{number}")
        def fails() -> None:
            try:
                int("x")
            except ValueError as error:
                raise ValueError("what it led to") from error

        return fails

    own = dg.Definitions(assets=[two, *(failing(n) for n in range(6))], executor=dg.in_process_executor)
    result = own.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance, raise_on_error=False)
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    context = dg.build_run_status_sensor_context(
        "alerts", result.get_run_failure_event(), instance, run, repository_def=own.get_repository_def()
    )
    failed_runs(context.for_run_failure())
    [text] = hook.texts()
    assert "*Partition:* none" in text
    assert text.count("*Asset:*") == 5
    assert "and 2 more steps" in text
    assert "*Error:* ```ValueError: what it led to```" in text
    if "deep/asset_0" in text:
        assert (
            "*Asset:* deep/asset_0, deep/asset_1\n*Error:* ```ValueError: both at once\nbecause of &lt;***&gt; &amp; x"
            in text
        )
    assert "example.com" not in text.replace(UI, "")
    assert len(text) < 4000


def test_a_fault_has_one_alert_until_it_is_mended_and_a_message_then(
    alerting: Platform, hook: Hook, instance: dg.DagsterInstance
) -> None:
    alerting.put_views("PageViews/a", [*[view("2017-04-01T10:00:00", f"/{n}") for n in range(8)], "broken"])

    def run(day: str) -> None:
        alert(alerting.materialize(day, select="group:raw", instance=instance), instance)

    told = "*Asset:* raw_page_views\n*Check:* reject_share warns for 2017-04-01\n```PageViews/a: "
    run("2017-04-01")
    [text] = hook.texts()
    assert text.startswith(":warning: *test_job* succeeded, but checks failed\n*Partition:* 2017-04-01\n" + told)
    run("2017-04-01")
    # It says nothing of another day, and another day nothing of it.
    run("2017-04-02")
    run("2017-04-01")
    assert len(hook.texts()) == 1
    alerting.put_views("PageViews/a", [*[view("2017-04-01T10:00:00", f"/{n}") for n in range(8)], "broken", "{}"])
    run("2017-04-01")
    assert told + "2 of 10 lines" in hook.texts()[1]
    alerting.put_views("PageViews/a", [view("2017-04-01T10:00:00", f"/{n}") for n in range(8)])
    run("2017-04-01")
    run("2017-04-01")
    [mended] = [text.partition("<")[0] for text in hook.texts()[2:]]
    assert mended == (
        ":white_check_mark: *test_job*: checks pass again\n*Partition:* 2017-04-01\n"
        "*Mended:* reject_share of raw_page_views for 2017-04-01\n"
    )


def test_a_run_that_fails_for_what_was_told_of_has_no_further_alert(
    alerting: Platform, hook: Hook, instance: dg.DagsterInstance
) -> None:
    alerting.put_views("PageViews/a", [view("2017-04-01T10:00:00"), "broken", "broken"])
    for _ in range(2):
        result = alerting.materialize("2017-04-01", select="group:raw", raise_on_error=False, instance=instance)
        assert not result.success
        alert(result, instance)
    [text] = hook.texts()
    assert "*Check:* reject_share_of_day failed for 2017-04-01" in text
    assert "*Error:*" not in text


def test_a_new_key_of_a_feed_is_news_and_nothing_to_mend(
    alerting: Platform, hook: Hook, instance: dg.DagsterInstance
) -> None:
    alerting.put_views("PageViews/a", [view("2017-04-01T10:00:00", more=1)])
    for _ in range(2):
        alert(alerting.materialize("2017-04-01", select="group:raw", instance=instance), instance)
    [text] = hook.texts()
    assert "*Check:* schema_drift warns\n```new key more: 1 lines, first in PageViews/a, line 1```" in text


def test_a_failed_blocking_check_is_told_of_once_and_not_as_a_step(
    alerting: Platform, hook: Hook, instance: dg.DagsterInstance
) -> None:
    alerting.put("UserUpdates/a", update("2017-04-01T10:00:00", 7, "who@example.com"))
    assert alerting.materialize("2017-04-01", "2017-04-02").success
    with alerting.staging.transaction() as transaction:
        transaction.execute("insert into public.user_updates select * from public.user_updates")
    from user_pipeline.definitions import defs as whole

    selection = dg.AssetSelection.checks_for_assets("user_updates")
    job = dg.define_asset_job("recheck", selection=selection)
    resolved = dg.Definitions.merge(whole, dg.Definitions(jobs=[job])).resolve_job_def("recheck")
    tags = {"dagster/asset_partition_range_start": "2017-04-01", "dagster/asset_partition_range_end": "2017-04-02"}
    alert(resolved.execute_in_process(instance=instance, tags=tags, raise_on_error=False), instance)
    [text] = hook.texts()
    assert text.startswith(
        ":red_circle: *recheck* failed\n*Partition:* 2017-04-01...2017-04-02\n*Asset:* user_updates\n"
    )
    assert "*Check:* no_duplicates failed for 2017-04-01\n```2017-04-01: 1 rows too many```" in text
    assert "*Check:* every_row_accounted failed for 2017-04-01" in text
    assert text.count("*Check:*") == 2
    assert "*Error:*" not in text


def test_a_warning_of_a_successful_run_is_an_alert_and_a_quiet_run_is_none(
    alerting: Platform, hook: Hook, instance: dg.DagsterInstance
) -> None:
    alerting.put_views("PageViews/a", [view("2017-04-01T10:00:00")])
    result = alerting.materialize("2017-04-01", instance=instance)
    alert(result, instance)
    assert hook.requests == []
    alerting.put_views("PageViews/of ann@example.com", [view("2017-04-01T11:00:00"), "broken"])
    result = alerting.materialize("2017-04-01", instance=instance)
    assert result.success
    alert(result, instance)
    [text] = hook.texts()
    assert text.startswith(":warning: *test_job* succeeded, but checks failed\n*Partition:* 2017-04-01\n")
    assert (
        "*Asset:* raw_page_views\n*Check:* reject_share warns for 2017-04-01\n```PageViews/of ***: 1 of 2 lines" in text
    )
    assert "example.com" not in text.replace(UI, "")


@pytest.mark.usefixtures("alerting")
def test_sensors_post_each_run_once_and_nothing_from_before_they_were_on(
    hook: Hook, instance: dg.DagsterInstance
) -> None:
    @dg.job(executor_def=dg.in_process_executor)
    def fails() -> None:
        @dg.op
        def fail() -> None:
            raise ValueError("no")

        fail()

    cursor: str | None = None

    def tick() -> str | None:
        # The daemon gives no repository to runs that were executed in a process of their own, as these were.
        context = dg.build_sensor_context(instance=instance, cursor=cursor)
        data = failed_runs.evaluate_tick(context)
        assert all(reaction.error is None for reaction in data.dagster_run_reactions or ())
        return data.cursor

    fails.execute_in_process(instance=instance, raise_on_error=False)
    cursor = tick()
    assert hook.bodies == []
    fails.execute_in_process(instance=instance, raise_on_error=False)
    fails.execute_in_process(instance=instance, raise_on_error=False)
    cursor = tick()
    assert len(hook.bodies) == 2
    hook.answers = [500]
    fails.execute_in_process(instance=instance, raise_on_error=False)
    cursor = tick()
    tries = len(hook.requests)
    cursor = tick()
    assert len(hook.requests) == tries


def test_unset_it_posts_nothing_and_the_sensors_are_off(
    platform: Platform, hook: Hook, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("USER_PIPELINE_ALERT_WEBHOOK_URL", raising=False)
    held = [defs.resolve_sensor_def(name) for name in ("failed_runs", "failed_checks")]
    assert {sensor.default_status for sensor in held} == {dg.DefaultSensorStatus.STOPPED}
    platform.put_views("PageViews/a", [view("2017-04-01T10:00:00"), "broken"])
    alert(platform.materialize("2017-04-01", instance=instance), instance)
    assert hook.requests == []


def webhook(url: str) -> Webhook:
    found = Settings.from_environment({"USER_PIPELINE_ALERT_WEBHOOK_URL": url}).alert_webhook
    assert found is not None
    return found


def test_a_server_that_stumbles_is_asked_again_and_gets_one_alert(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "_PAUSES", (0.0, 0.0))
    hook.answers = [500, 429, 200]
    assert post(webhook(hook.url), {"text": "x"}) is None
    assert hook.bodies == [{"text": "x"}]
    assert len(hook.requests) == 3


@pytest.mark.parametrize(("answer", "tries"), [(500, 3), (429, 3), (404, 1), (403, 1), (302, 1)])
def test_a_server_that_refuses_is_given_up_on(
    hook: Hook, answer: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "_PAUSES", (0.0, 0.0))
    hook.answers = [answer]
    assert post(webhook(hook.url), {"text": "x"}) == f"it answers {answer}"
    assert hook.requests == [(SECRET, "application/json")] * tries


def test_a_slow_server_is_not_asked_twice_as_it_may_have_taken_it(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "_TIMEOUT", 0.2)
    hook.pause = 1.0
    assert post(webhook(hook.url), {"text": "x"}) == "no answer to it (TimeoutError); it may have arrived"
    assert len(hook.requests) == 1


def test_a_server_that_drips_its_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "_PATIENCE", 0.5)
    stop = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200:
                if stop.wait(0.1):
                    return
                connection.sendall(bytes([byte]))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}{SECRET}"
        assert post(webhook(url), {"text": "x"}) == "no whole answer within 0.5 seconds; it may have arrived"
        stop.set()
        thread.join(5)


def test_a_server_that_is_down_harms_nothing_and_no_log_line_shows_the_secret(
    alerting: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(alerts, "_PAUSES", (0.0, 0.0))
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    monkeypatch.setenv("USER_PIPELINE_ALERT_WEBHOOK_URL", f"http://127.0.0.1:{port}{SECRET}")
    settings.current.cache_clear()
    alerting.put_views("PageViews/a", [view("2017-04-01T10:00:00"), "broken"])
    alert(alerting.materialize("2017-04-01", instance=instance), instance)
    written = "".join(capfd.readouterr())
    assert f"its alert was not delivered to http://127.0.0.1:{port}/***: it cannot be reached" in written
    assert "not-to-be-seen" not in written


def test_five_undelivered_alerts_leave_a_tick_time_to_end() -> None:
    assert 5 * alerts._PATIENCE < 60
    assert sum(alerts._PAUSES) + alerts._TIMEOUT < alerts._PATIENCE


def test_an_alert_holds_no_address_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "aws/secret+key")
    current = Settings.from_environment(
        {
            "USER_PIPELINE_ALERT_WEBHOOK_URL": "https://hooks.example.com/T/B/hush",
            "USER_PIPELINE_STAGING_URL": "postgresql://me:p%40ss-word@db.internal/x?sslpassword=key-word",
        }
    )
    run = dg.DagsterRun(job_name="j", run_id="11111111-1111-1111-1111-111111111111")
    lines = [
        "o'brien+x@example.com, 'a@b.org' <c@d.org>, mailto:e@f.org; /reset?mail=g%40h.org&x=1",
        "p@ss-word p%40ss-word key-word aws/secret+key https://hooks.example.com/T/B/hush",
        "postgresql://me:p%40ss-word@db.internal/x",
    ]
    text = message(current, run, "title", lines)["text"]
    for hidden in ("brien", "b.org", "d.org", "f.org", "h.org", "ss-word", "key-word", "secret+key", "hush"):
        assert hidden not in text
    assert text.startswith("title\n*Partition:* none\n***, *** &lt;***&gt;, mailto:***; ***")
    assert text.endswith("\nRun 11111111-1111-1111-1111-111111111111")
