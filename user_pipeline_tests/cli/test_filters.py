"""`user-pipeline filter access-log` as a filter of the pipeline and as a program of its own."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import pytest

from user_pipeline.ingest.feeds import PAGE_VIEWS
from user_pipeline.ingest.filter import Filter
from user_pipeline.settings import Settings
from user_pipeline_tests.access_logs.test_views import convert, line
from user_pipeline_tests.ingest.reading import ingest, rows
from user_pipeline_tests.platform import Platform

COMMAND = str(Path(sys.executable).with_name("user-pipeline"))
KEY = {"USER_PIPELINE_USER_ID_KEY": "a key of the tests"}


def run(
    *arguments: str, lines: str = "", environment: Mapping[str, str] = KEY, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "filter", "access-log", *arguments],
        input=lines,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        timeout=120,
    )


def log() -> list[str]:
    """A log of two days, with all that is in one."""
    lines = []
    for number in range(300):
        day = f"{1 + number % 2:02}/Apr/2017:10:{number // 60:02}:{number % 60:02} +0000"
        lines.append(line(f"GET /page/{number % 7}?q={number} HTTP/1.1", ip=f"192.0.2.{number % 50}", time=day))
        lines.append(line(f"GET /style.css?v={number} HTTP/1.1", time=day))
    lines += [line("GET /robots HTTP/1.1", agent="Googlebot/2.1"), line(status=404), line("POST /a HTTP/1.1")]
    lines += ["cut off 192.0.2", "\n", "\n", '{"ts": "2017-04-01T10:00:00", "url": "/forged"}\n']
    lines[-4] += "\n"
    return lines


def test_a_log_becomes_page_views_and_every_line_is_accounted_for(platform: Platform, tmp_path: Path) -> None:
    platform.put("PageViews/access.log", "".join(log()))
    settings = Settings.from_environment({"USER_PIPELINE_PAGE_VIEWS_FILTER": "user-pipeline filter access-log", **KEY})
    chosen = Filter.of(PAGE_VIEWS, settings, {"PATH": str(tmp_path)})
    assert chosen is not None
    assert chosen.program == COMMAND
    [entry] = ingest(platform, chosen=chosen).entries
    assert (entry.error, entry.lines, entry.rows, entry.blank, entry.rejected, entry.unaccounted) == (
        None,
        304,
        300,
        2,
        {"malformed": 2},
        0,
    )
    assert [platform_row for (platform_row,) in platform.rows("staging", "select line from rejected_lines")] == [
        "cut off 192.0.2",
        json.dumps('{"ts": "2017-04-01T10:00:00", "url": "/forged"}'),
    ]
    found = rows(platform, day=date(2017, 4, 1))
    assert {row["url"] for row in found} == {f"/page/{number}" for number in range(7)}
    assert len({row["user_id"] for row in found}) == 25


def test_the_counts_are_on_stderr_and_it_writes_no_file(tmp_path: Path) -> None:
    done = run(lines="".join(log()), cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == (
        "access-log: 607 lines: blank 2, left out: a bot 1, left out: another method 1, left out: another status 1, "
        "left out: no page 300, malformed 2, page views 300\n"
    )
    assert done.stdout == "".join(convert(*log())[0])
    assert list(tmp_path.iterdir()) == []
    assert run().stderr == "access-log: 0 lines: nothing\n"


def test_options_reach_the_rules() -> None:
    text = line("GET /a?b HTTP/1.1", agent="curl/8", status=206)
    done = run("--status", "206", "--bots", "keep", "--query", "keep", "--environment", "staging", lines=text)
    assert json.loads(done.stdout)["url"] == "/a?b"
    assert json.loads(done.stdout)["environment"] == "staging"
    assert run("--only", "^/b", "--bots", "keep", "--status", "206", lines=text).stdout == ""
    assert run("--user-from", "remote_user", "--anonymous", "drop", lines=line()).stdout == ""


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ([], {}, "USER_PIPELINE_USER_ID_KEY has to hold a secret of at least 16 characters"),
        ([], {"USER_PIPELINE_USER_ID_KEY": "short"}, "export USER_PIPELINE_USER_ID_KEY=$(openssl rand -hex 32)"),
        (["--user-from", "cookie"], KEY, "--user-from cookie goes with --cookie NAME"),
        (["--cookie", "uid"], KEY, "--user-from cookie goes with --cookie NAME"),
        (["--user-from", "cookie", "--cookie", "uid"], KEY, "--format: the format has no $http_cookie"),
        (["--format", "$remote_addr"], KEY, "--format: the format has no $request, $status, $time_local"),
        (["--only", "("], KEY, "--only and --exclude want regular expressions"),
        (["--user-from", "face"], KEY, "'face' is not one of 'ip', 'cookie', 'remote_user'"),
    ],
)
def test_what_it_cannot_do_is_said_with_what_would_be_right(
    arguments: list[str], environment: dict[str, str], said: str
) -> None:
    done = run(*arguments, environment=environment, lines=line())
    assert done.returncode > 0
    assert done.stdout == ""
    assert said in done.stderr


def test_it_ends_when_nobody_reads_on() -> None:
    shell = f"{shlex.quote(COMMAND)} filter access-log | head -n 1"
    done = subprocess.run(
        ["sh", "-c", shell],
        input=line() * 50_000,
        env={"PATH": os.environ["PATH"], **KEY},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_the_version_of_the_rules_is_part_of_what_an_object_was_read_with(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Filter("USER_PIPELINE_PAGE_VIEWS_FILTER", "user-pipeline filter access-log")
    before = chosen.read_with
    assert before == chosen.read_with
    monkeypatch.setattr("user_pipeline.access_logs.RULES", "another")
    assert chosen.read_with != before
