"""Objects go through a command before they are cut into lines; whatever it does, no other object suffers."""

import bz2
import gzip
import io
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from user_pipeline import interrupts
from user_pipeline.ingest import filter_process, filter_session
from user_pipeline.ingest.compression import BrokenObjectError
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES
from user_pipeline.ingest.filter import Filter, FilterError
from user_pipeline.ingest.filter_output import Said
from user_pipeline.setting_values import ObjectLimits
from user_pipeline.settings import Settings
from user_pipeline_tests.ingest.reading import ingest, manifest_of, rows
from user_pipeline_tests.platform import Platform, view

MARK = f"98710{os.getpid()}"
SLEEP = f"9871 {MARK}"
"""Sleeps for the sum of both: the second tells whose process it is."""
LIMITS = ObjectLimits(size=10**9, ratio=10**6, lines=10**9, rejects=10**9)
GOOD = view("2017-04-01T10:00:00")
PATH = os.environ["PATH"]
SECRET = "hunter2-hunter2-hunter2"  # noqa: S105 - it must not be shown


def of(command: str, **more: Any) -> Filter:
    return Filter("USER_PIPELINE_PAGE_VIEWS_FILTER", command, environment={"PATH": PATH, **more.pop("env", {})}, **more)


def python(code: str, **more: Any) -> Filter:
    return of(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}", **more)


def through(chosen: Filter, content: bytes | list[bytes], name: str = "PageViews/a", **limits: int) -> bytes:
    chunks = [content] if isinstance(content, bytes) else content
    size = sum(map(len, chunks))
    with chosen.open(chunks, name, stored_bytes=size, limits=replace(LIMITS, **limits)) as stream:
        return b"".join(iter(lambda: stream.read(1000_000), b""))


def said_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture(autouse=True)
def _logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "user_pipeline")


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Path]:
    def make(text: str, mode: int = 0o755, name: str = "filter") -> Path:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(mode)
        return path

    return make


# What goes through


@pytest.mark.parametrize("size", [0, 1, 100, 10_000_000])
def test_cat_changes_nothing(size: int) -> None:
    content = os.urandom(size) or b""
    assert through(of("cat"), content) == content


def test_a_command_is_cut_into_words_as_by_a_shell_and_there_is_none() -> None:
    assert through(of("printf '%s|' 'a b' \"c d\" $HOME ';' '*' >x"), b"") == b"a b|c d|$HOME|;|*|>x|"
    assert through(of("sh -c 'tr a b | tr b c'"), b"aab\n") == b"ccc\n"


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_it_gets_decompressed_bytes_or_those_that_are_stored(compress: Callable[[bytes], bytes]) -> None:
    content = compress(b"hello\n")
    assert through(of("cat"), content) == b"hello\n"
    assert through(of("cat", as_stored=True), content) == content


def test_it_gets_the_name_of_the_object_and_the_variables_that_are_named_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("USER_PIPELINE_STAGING_URL", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "PGPASSWORD", "OTHER"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("TOKEN", "t" * 10)
    settings = Settings.from_environment(
        {"USER_PIPELINE_PAGE_VIEWS_FILTER": "env", "USER_PIPELINE_FILTER_ENVIRONMENT": "PATH,TOKEN,NOT_SET"}
    )
    chosen = Filter.of(PAGE_VIEWS, settings)
    assert chosen is not None
    assert Filter.of(USER_UPDATES, settings) is None
    variables = dict(line.split("=", 1) for line in through(chosen, b"", "PageViews/a b.gz").decode().splitlines())
    variables.pop("LC_CTYPE", None)  # Python's own, of the launcher
    assert variables == {"PATH": PATH, "TOKEN": "t" * 10, "SOURCE_OBJECT": "PageViews/a b.gz"}


def test_it_gets_the_key_of_user_ids() -> None:
    settings = Settings.from_environment(
        {"USER_PIPELINE_PAGE_VIEWS_FILTER": "env", "USER_PIPELINE_USER_ID_KEY": SECRET}
    )
    chosen = Filter.of(PAGE_VIEWS, settings)
    assert chosen is not None
    assert f"USER_PIPELINE_USER_ID_KEY={SECRET}\n".encode() in through(chosen, b"")
    assert SECRET not in repr(chosen) + repr(settings)


def test_it_has_no_descriptors_but_its_three() -> None:
    listing = through(python("import os; print(*sorted(map(int, os.listdir('/proc/self/fd'))))"), b"")
    # The fourth is that of the listing itself.
    assert listing.split() == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize(
    "code",
    [
        # Takes all before it gives any; gives all before it takes any; gives much more and much less than it takes.
        "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read())",
        "import sys; b = b'x' * 10**7; sys.stdout.buffer.write(b); sys.stdout.flush(); sys.stdin.buffer.read()",
        "import sys\nfor line in sys.stdin.buffer: sys.stdout.buffer.write(line * 3)",
        "import sys, os\nwhile os.read(0, 7): pass",
        # Fills the third pipe in between.
        "import sys\nfor line in sys.stdin.buffer: sys.stderr.write('x' * 1000); sys.stdout.buffer.write(line)",
        # Closes its output and goes on reading.
        "import os, sys\nos.close(1)\nwhile os.read(0, 100_000): pass",
    ],
)
def test_neither_side_waits_for_the_other(code: str) -> None:
    lines = [b"x" * 999 + b"\n"] * 10_000
    result = through(python(code), lines)
    assert len(result) in (0, 10**7, 3 * 10**7)


def test_no_more_is_held_than_some_blocks() -> None:
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 10**6
            yield b"x" * 10**6

    with of("cat").open(chunks(), "a", stored_bytes=10**8, limits=LIMITS) as stream:
        assert stream.read(1)
        time.sleep(0.1)
        assert stream.read(1)
        assert taken <= 12 * 10**6


# What goes wrong


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("no-such-program --x", "'no-such-program' cannot be started: there is no such program in PATH="),
        ("/no/such/program", "'/no/such/program' cannot be started: there is no such program."),
        ("/tmp", "it is a directory"),  # noqa: S108
        ("{text}", "the pipeline may not execute it: chmod +x"),
        ("{interpreter}", "the interpreter that its first line names is not there"),
        ("{plain}", "neither a program for this machine nor a script whose first line begins with #!"),
    ],
)
def test_what_cannot_be_started_fails_the_run_and_everything_waits(
    platform: Platform, script: Callable[..., Path], command: str, problem: str
) -> None:
    files = {
        "text": script("#!/bin/sh\ncat\n", 0o644, "text"),
        "interpreter": script("#!/no/such/interpreter\n", name="interpreter"),
        "plain": script("cat\n", name="plain"),
    }
    platform.put_views("PageViews/a", [GOOD])
    command = command.format(**files)
    with pytest.raises(FilterError, match=r"^USER_PIPELINE_PAGE_VIEWS_FILTER=") as raised:
        ingest(platform, chosen=of(command))
    assert problem in str(raised.value)
    assert "Put it right, or unset the variable" in str(raised.value)
    assert list(manifest_of(platform).entries()) == []
    assert [entry.rows for entry in ingest(platform, chosen=of("cat")).entries] == [1]


FAILING = {
    "dies half-way": (
        "import sys; sys.stdout.buffer.write(sys.stdin.buffer.readline()); sys.stdout.flush(); sys.exit(3)",
        "its filter exited with status 3",
    ),
    "says why": ("import sys; sys.exit('line 7: no date')", "its filter exited with status 1: line 7: no date"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "its filter was killed by SIGKILL"),
    "fails after all": (
        "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()); sys.exit(1)",
        "its filter exited with status 1",
    ),
    "takes too much memory at once": ("x = bytearray(2 * 10**9)", "MemoryError"),
}


@pytest.mark.parametrize("what", FAILING)
def test_a_filter_that_fails_breaks_its_object_alone(platform: Platform, what: str) -> None:
    code, problem = FAILING[what]
    for key in "abc":
        platform.put_views(f"PageViews/{key}", [GOOD] * 3)
    code = f"import os, sys\nif os.environ['SOURCE_OBJECT'] != 'PageViews/b': os.execvp('cat', ['cat'])\n{code}"
    [broken] = ingest(platform, chosen=python(code)).broken
    assert broken.key == "PageViews/b"
    assert problem in str(broken.error)
    assert {entry.key: entry.rows for entry in manifest_of(platform).entries()} == {
        "PageViews/a": 3,
        "PageViews/b": 0,
        "PageViews/c": 3,
    }
    assert len(rows(platform)) == 6


def leftovers() -> list[str]:
    """Processes that the tests of this process started and that live."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        # Gone meanwhile.
        with suppress(OSError):
            if int(entry.parent.name) != os.getpid() and MARK.encode() in entry.read_bytes():
                found.append(entry.parent.name)
    return found


@pytest.mark.parametrize(
    "command",
    [
        "sleep 9871 MARK",
        "sh -c 'cat; sleep 9871 MARK'",
        "sh -c 'exec >&- 2>&-; sleep 9871 MARK; true'",
        # Ends well, and leaves behind who could still write.
        "sh -c 'sleep 9871 MARK & cat'",
        # In a group of its own.
        f'{sys.executable} -c \'import subprocess; subprocess.run(["sleep", "9871", "MARK"], process_group=0)\'',
    ],
)
def test_one_that_hangs_is_killed_with_all_it_started(command: str) -> None:
    command = command.replace("9871 MARK", SLEEP).replace("MARK", MARK)
    with pytest.raises(BrokenObjectError, match="its filter took longer than USER_PIPELINE_FILTER_SECONDS allows, 1 s"):
        through(of(command, seconds=1), b"x\n" * 1000)
    assert leftovers() == []


def test_what_is_left_running_with_nothing_to_say_is_killed_at_the_end() -> None:
    assert through(of(f"sh -c 'sleep {SLEEP} >&- 2>&- & cat'"), b"x\n") == b"x\n"
    assert leftovers() == []


def test_one_that_is_not_read_to_its_end_is_killed() -> None:
    stream = of(f"sh -c 'yes; sleep {SLEEP}'").open([b""], "a", stored_bytes=0, limits=LIMITS)
    assert stream.read(10)
    stream.close()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.read(10)
    assert leftovers() == []


def test_a_fork_bomb_is_stopped() -> None:
    bomb = f"# {MARK}\nimport os, time\nwhile True:\n  try: os.fork()\n  except OSError: time.sleep(0.01)"
    with pytest.raises(BrokenObjectError, match=r"had more than 256 processes|used more memory|took longer"):
        through(python(bomb, seconds=20), b"")
    assert leftovers() == []


def test_processes_that_take_too_much_memory_together_are_stopped() -> None:
    hog = "import os, time\nfor _ in range(4): os.fork()\nx = b'x' * 20_000_000\ntime.sleep(60)"
    with pytest.raises(BrokenObjectError, match="more memory than USER_PIPELINE_FILTER_MEMORY allows, 100,000,000 b"):
        through(python(hog, memory=10**8), b"")


def test_no_core_is_dumped() -> None:
    limits = through(python("import resource; print(*resource.getrlimit(resource.RLIMIT_CORE))"), b"")
    assert limits == b"0 0\n"


def test_what_writes_garbage_brings_rejects_and_the_accounts_add_up(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD] * 10)
    [entry] = ingest(platform, chosen=python("import os; os.write(1, bytes(range(256)) * 50)")).entries
    assert entry.error is None
    assert (entry.rows, entry.rejects, entry.unaccounted) == (0, entry.lines - entry.blank, 0)


def test_what_writes_nothing_is_told(platform: Platform, caplog: pytest.LogCaptureFixture) -> None:
    platform.put_views("PageViews/a", [GOOD] * 10)
    [entry] = ingest(platform, chosen=of("grep -c -m 1 nothing /dev/null")).broken
    assert entry.error == "its filter exited with status 1"
    platform.put_views("PageViews/b", [GOOD] * 10)
    [entry] = [entry for entry in ingest(platform, chosen=of("sh -c 'cat >/dev/null'")).entries if "b" in entry.key]
    assert (entry.lines, entry.rows, entry.error) == (0, 0, None)
    assert "PageViews/b: its filter made nothing of 860 bytes" in said_of(caplog)


@pytest.mark.parametrize("size", [10, 10**7])
def test_one_that_stops_reading_is_believed_if_it_exits_with_0_and_told_of(
    caplog: pytest.LogCaptureFixture, size: int
) -> None:
    content = b"line\n" * size
    assert through(of("head -n 1"), content) == b"line\n"
    assert ("its filter stopped reading after" in said_of(caplog)) == (size > 10)
    with pytest.raises(BrokenObjectError, match="exited with status 5"):
        through(of("sh -c 'exec <&-; exit 5'"), content)


def test_a_broken_pipe_kills_what_writes_to_it() -> None:
    """As in a shell: Python ignores the signal, and what it starts must not."""
    assert through(of("sh -c 'yes | head -n 2'"), b"") == b"y\ny\n"


def test_a_truncated_object_is_broken_whatever_the_filter_says(platform: Platform) -> None:
    platform.put("PageViews/a", gzip.compress(b"x\n" * 1000)[:-8])
    [entry] = ingest(platform, chosen=of("cat")).broken
    assert "ended before" in str(entry.error)


def test_the_limits_hold_before_the_filter_and_after_it() -> None:
    bomb = gzip.compress(b"0" * 10**8)
    with pytest.raises(BrokenObjectError, match="USER_PIPELINE_MAX_COMPRESSION_RATIO"):
        through(of("sh -c 'cat >/dev/null'"), bomb, ratio=200)
    with pytest.raises(BrokenObjectError, match="USER_PIPELINE_MAX_OBJECT_SIZE"):
        through(of("sh -c 'cat >/dev/null'"), bomb, size=10**6)


def test_an_endless_output_passes_a_limit(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD])
    limits = replace(platform.settings.object_limits, size=20 * 10**6)
    [entry] = ingest(platform, chosen=of("yes"), limits=limits).broken
    assert "allows" in str(entry.error)
    assert leftovers() == []


def test_an_error_of_the_store_is_no_fault_of_the_object() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x\n" * 1000
        raise OSError("connection reset")

    with (
        of(f"sh -c 'cat; sleep {SLEEP}'").open(chunks(), "a", stored_bytes=2000, limits=LIMITS) as stream,
        pytest.raises(OSError, match="connection reset"),
    ):
        list(iter(lambda: stream.read(1000), b""))
    assert leftovers() == []


# What it says


def test_what_it_says_is_in_the_log_masked_and_printable(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    text = f"hello\\x1b[31m\\n\\nann@example.com and wJalrXUtnFEMI and {SECRET}\\nlast"
    code = f"import sys; sys.stderr.write('{text}')"
    through(python(code, env={"TOKEN": SECRET}), b"", "PageViews/ann@example.com")
    assert said_of(caplog) == "PageViews/***: its filter said:\nhello\\x1b[31m\n*** and *** and ***\nlast"


def test_the_reason_holds_no_secret(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD])
    [entry] = ingest(
        platform, chosen=python(f"import sys; sys.exit('no way in for {SECRET}')", env={"TOKEN": SECRET})
    ).broken
    assert entry.error == "its filter exited with status 1: no way in for ***"


def test_of_much_that_it_says_the_beginning_and_the_end_are_kept() -> None:
    said = Said([SECRET])
    for number in range(1000):
        said.add(f"line {number} {'x' * 1000 if number % 2 else ''}\n".encode())
    lines = said.lines()
    assert lines[0] == "line 0 "
    assert lines[1] == "line 1 " + "x" * 293 + "…"
    assert lines[-1].startswith("line 999 ")
    assert any(line.startswith("… [50") and line.endswith(" bytes]") for line in lines)
    assert len("".join(lines)) < 15_000
    assert Said().lines() == []


@pytest.mark.parametrize("at", range(8150, 8250, 3))
def test_a_secret_is_not_shown_in_part_where_the_text_is_cut(at: int) -> None:
    for before, after in ((at, 50_000), (50_000, at)):
        said = Said([SECRET])
        said.add(("\n".join(["a" * 60] * 2000)[:before] + SECRET + "\n".join(["b" * 60] * 2000)[:after]).encode())
        shown = "".join(said.lines())
        assert not any(SECRET[n : n + 5] in shown for n in range(len(SECRET) - 5))


# Stopping


def test_who_is_told_to_stop_does_not_wait_for_it(platform: Platform) -> None:
    platform.put_views("PageViews/a", [GOOD])
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(interrupts, "_SIGNALS", (signal.SIGUSR1,))
            with interrupts.watched():
                timer.start()
                with pytest.raises(KeyboardInterrupt, match="told to stop"):
                    ingest(platform, chosen=of(f"sleep {SLEEP}"))
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    assert list(manifest_of(platform).entries()) == []
    assert leftovers() == []


# What an object was read with


def test_the_filter_and_its_version_are_kept_with_the_object(platform: Platform, script: Callable[..., Path]) -> None:
    path = script("#!/bin/sh\ncat\n")
    platform.put_views("PageViews/a", [GOOD, "broken"])
    [plain] = ingest(platform).entries
    assert (plain.filter, plain.filter_version) == (None, None)
    platform.put_views("PageViews/b", [GOOD, "broken"])
    [entry] = ingest(platform, chosen=of(str(path))).entries
    assert (entry.filter, entry.lines, entry.rows, entry.rejects) == (str(path), 2, 1, 1)
    version = entry.filter_version
    assert version
    assert of(str(path)).read_with.filter_version == version
    others = [
        of(str(path), as_stored=True).read_with,
        of(str(path), key="x" * 16).read_with,
        of(str(path), key="y" * 16).read_with,
        of(f"sh {path}").read_with,
    ]
    script("#!/bin/sh\ncat -\n")
    others += [of(str(path)).read_with, of(f"sh {path}").read_with]
    assert len({other.filter_version for other in others} | {version}) == 7


def test_numbers_of_lines_are_those_of_the_output(platform: Platform) -> None:
    platform.put_views("PageViews/a", ["head", GOOD, "broken", GOOD])
    ingest(platform, chosen=of("tail -n +2"))
    assert [row["source_line"] for row in rows(platform)] == [1, 3]
    assert platform.rows("staging", "select source_line, line from rejected_lines") == [(2, "broken")]


def test_another_filter_changes_nothing_until_it_is_asked_for(platform: Platform) -> None:
    from user_pipeline.ingest.look import Again

    for key in "abc":
        platform.put_views(f"PageViews/{key}", [GOOD] * 2)
    failing = "import os, sys\nif os.environ['SOURCE_OBJECT'] == 'PageViews/c': sys.exit(1)\nos.execvp('cat', ['cat'])"
    assert len(ingest(platform, chosen=python(failing)).entries) == 3
    # The broken one waits for nothing else.
    head = of("head -n 1")
    assert [(entry.key, entry.rows) for entry in ingest(platform, chosen=head).entries] == [("PageViews/c", 1)]
    assert ingest(platform, chosen=head).entries == []
    read = ingest(platform, chosen=head, again=Again.OTHERWISE)
    assert [(entry.key, entry.rows) for entry in read.entries] == [("PageViews/a", 1), ("PageViews/b", 1)]
    assert len(rows(platform)) == 3
    assert ingest(platform, chosen=head, again=Again.OTHERWISE).entries == []
    assert len(ingest(platform, chosen=head, again=Again.ALL).entries) == 3
    assert len(ingest(platform, again=Again.OTHERWISE).entries) == 3
    assert len(rows(platform)) == 6


def test_it_is_usable_from_a_plain_function() -> None:
    settings = Settings.from_environment({"USER_PIPELINE_USER_UPDATES_FILTER": "tr a-z A-Z"})
    chosen = Filter.of(USER_UPDATES, settings)
    assert chosen is not None
    with chosen.open([b"a,b\n"], "UserUpdates/a", stored_bytes=4, limits=settings.object_limits) as stream:
        assert isinstance(stream, io.BufferedIOBase)
        assert stream.read() == b"A,B\n"
    assert "dagster" not in filter_process.__dict__
    assert filter_session.MOST_PROCESSES == 256
