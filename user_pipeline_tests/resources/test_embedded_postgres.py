import grp
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy
from pydantic import SecretStr

from user_pipeline.resources import embedded_postgres as postgres
from user_pipeline.resources import embedded_start
from user_pipeline.resources.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError
from user_pipeline.setting_values import Database

Query = Callable[[str, str], list[tuple[object, ...]]]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by Postgres")
IN_THE_CLUSTER = (
    "import pathlib, sys; from user_pipeline.resources import embedded_postgres as postgres;"
    "s = postgres.ensure_running(pathlib.Path(sys.argv[1])); s.create_database('analytics');"
    "print(s.url('analytics'))"
)


def postmaster(server: EmbeddedPostgres) -> int:
    return int((server.cluster / "postmaster.pid").read_text().splitlines()[0])


def kill(server: EmbeddedPostgres) -> None:
    os.kill(postmaster(server), signal.SIGKILL)


def starts(server: EmbeddedPostgres) -> int:
    return server.log.read_text().count("starting PostgreSQL")


def test_ten_processes_at_once_share_one_server_that_outlives_them(place: Path, query: Query) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", IN_THE_CLUSTER, place], stdout=subprocess.PIPE, text=True)
        for _ in range(10)
    ]
    urls = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0] * 10
    server = EmbeddedPostgres(place)
    assert urls == {server.url("analytics")}
    assert starts(server) == 1
    assert query(urls.pop(), "SHOW server_encoding") == [("UTF8",)]
    # A terminal's Ctrl-C or hang-up does not reach it.
    assert os.getsid(postmaster(server)) != os.getsid(0)


def test_a_running_server_is_found_in_milliseconds(server: EmbeddedPostgres) -> None:
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        assert postgres.ensure_running(server.data_dir) == server
        best = min(best, time.perf_counter() - begin)
    assert best < 0.05
    assert starts(server) == 1


def test_it_is_durable_deterministic_and_listens_on_no_port(server: EmbeddedPostgres, query: Query) -> None:
    url = server.url("postgres")
    for setting, value in {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "listen_addresses": "",
        "TimeZone": "UTC",
        "wal_level": "minimal",
    }.items():
        assert query(url, f"SHOW {setting}") == [(value,)], setting
    assert query(url, "SELECT 'a' < 'B', 'Ä' < 'z', upper('ä')") == [(False, False, "Ä")]
    mode = server.cluster.stat().st_mode
    assert mode & 0o077 == 0, "who may enter the directory of the socket may connect"


def test_databases_are_made_once_whatever_their_name(server: EmbeddedPostgres, query: Query) -> None:
    name = 'odd "name" %/ä'
    server.create_database(name)
    server.create_database(name)
    assert query(server.url(name), "SELECT current_database()") == [(name,)]


def test_a_configured_database_starts_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    url = "postgresql://someone:secret@db.example.com/analytics"
    assert postgres.database_url(Database("USER_PIPELINE_ANALYTICS_URL", "analytics", SecretStr(url))) == url
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("left_behind", ["as it was", "the pid of another process", "truncated", "empty"])
def test_committed_data_survive_a_kill_whatever_pid_file_is_left(
    server: EmbeddedPostgres, query: Query, left_behind: str
) -> None:
    postgres.ensure_running(server.data_dir)
    url = server.url("postgres")
    query(url, "CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS answer")
    pid_file = server.cluster / "postmaster.pid"
    lines = pid_file.read_text().splitlines(keepends=True)
    kill(server)
    if left_behind == "the pid of another process":
        pid_file.write_text("".join([f"{os.getpid()}\n", *lines[1:]]))
    elif left_behind == "truncated":
        pid_file.write_text(lines[0][:2])
    elif left_behind == "empty":
        pid_file.write_text("")
    assert postgres.ensure_running(server.data_dir) == server
    assert query(url, "SELECT answer FROM kept") == [(42,)]


def test_stopping_says_whether_it_did_and_a_socket_left_behind_is_no_server(place: Path, query: Query) -> None:
    assert not postgres.stop(place / "nowhere")
    assert not (place / "nowhere").exists()
    server = postgres.ensure_running(place)
    assert postgres.stop(place)
    assert not postgres.stop(place)
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(server.socket_dir / f".s.PGSQL.{postgres.PORT}"))
    (server.socket_dir / f".s.PGSQL.{postgres.PORT}.lock").write_text(f"{os.getpid()}\n{server.cluster}\n")
    postgres.ensure_running(place)
    assert query(server.url("postgres"), "SELECT 1") == [(1,)]


@pytest.mark.parametrize("name", ["a space, ünïcödé 🐘 and q'uote\"$(x)`y`:;%41\\", "/".join(["long" * 12] * 4)])
def test_a_long_or_unusual_path_gets_a_private_socket_elsewhere(place: Path, query: Query, name: str) -> None:
    data_dir = place / name
    server = postgres.ensure_running(data_dir)
    server.create_database("staging")
    assert place not in server.socket_dir.parents
    assert server.socket_dir.stat().st_mode & 0o777 == 0o700
    assert query(server.url("staging"), "SELECT current_database()") == [("staging",)]
    with sqlalchemy.create_engine(server.url("staging")).connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT current_database()")) == "staging"
    kill(server)
    assert postgres.ensure_running(data_dir).url("staging") == server.url("staging")
    socket_dir = server.socket_dir
    assert postgres.stop(data_dir)
    assert not socket_dir.exists()


def test_a_socket_directory_that_others_may_enter_is_refused(place: Path) -> None:
    data_dir = place / "with a space"
    server = postgres.ensure_running(data_dir)
    socket_dir = server.socket_dir
    postgres.stop(data_dir)
    socket_dir.mkdir(0o755)
    try:
        with pytest.raises(EmbeddedPostgresError, match=r"not a private directory(.|\n)*USER_PIPELINE_DATA_DIR"):
            postgres.ensure_running(data_dir)
    finally:
        socket_dir.rmdir()


def test_a_server_whose_directory_was_removed_is_not_in_the_way(place: Path, query: Query) -> None:
    data_dir = place / "with a space"
    old = postgres.ensure_running(data_dir)
    query(old.url("postgres"), "CREATE TABLE old ()")
    orphan = postmaster(old)
    orphans_socket = old.socket_dir
    shutil.rmtree(data_dir)
    try:
        server = postgres.ensure_running(data_dir)
        assert query(server.url("postgres"), "SELECT to_regclass('old')") == [(None,)]
    finally:
        os.kill(orphan, signal.SIGQUIT)
        shutil.rmtree(orphans_socket)


def test_a_start_that_is_killed_halfway_leaves_nothing_broken(place: Path, query: Query) -> None:
    starter = subprocess.Popen([sys.executable, "-c", IN_THE_CLUSTER, place])
    while not list(place.glob("postgres/.initdb-*/base")):
        assert starter.poll() is None
        time.sleep(0.005)
    starter.kill()
    starter.wait()
    server = postgres.ensure_running(place)
    assert query(server.url("postgres"), "SELECT 1") == [(1,)]
    assert sorted(path.name for path in server.home.iterdir()) == ["cluster", "lock", "server.log"]


def test_a_server_that_does_not_start_is_reported_with_its_log(place: Path) -> None:
    server = postgres.ensure_running(place)
    postgres.stop(place)
    with (server.cluster / "postgresql.conf").open("a") as configuration:
        configuration.write("shared_buffers = 'plenty'\n")
    with pytest.raises(EmbeddedPostgresError) as error:
        postgres.ensure_running(place)
    assert str(server.home) in str(error.value)
    assert 'invalid value for parameter "shared_buffers"' in str(error.value)


def test_a_data_directory_that_cannot_be_made_is_reported(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(EmbeddedPostgresError, match=r"file/data/postgres cannot be used: .*Not a directory"):
        postgres.ensure_running(place / "file" / "data")


def test_the_log_is_bounded(server: EmbeddedPostgres, query: Query) -> None:
    os.truncate(server.log, 11 * 2**20)
    postgres.ensure_running(server.data_dir)
    assert server.log.stat().st_size == 0
    with pytest.raises(Exception, match="no_such_table"):
        query(server.url("postgres"), "SELECT * FROM no_such_table")
    assert "no_such_table" in server.log.read_text()


@as_root
def test_root_runs_it_as_a_user_that_is_no_other_process_with_no_privilege_it_can_do_without(place: Path) -> None:
    server = postgres.ensure_running(place)
    status = Path(f"/proc/{postmaster(server)}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    assert set(fields["Uid"].split()) == set(fields["Gid"].split()) == {str(server.uid)}
    assert fields["Groups"].split() in ([], [str(server.uid)])
    with pytest.raises(KeyError):
        pwd.getpwuid(server.uid)
    with pytest.raises(KeyError):
        grp.getgrgid(server.uid)
    # The data directory is root's alone: to search it takes this one, or where that is withheld, as by Docker, more.
    dac_override, dac_read_search = 1 << 1, 1 << 2
    withheld = not int(fields["CapBnd"], 16) & dac_read_search
    assert int(fields["CapEff"], 16) == (dac_override if withheld else dac_read_search)


@as_root
@pytest.mark.parametrize("name", ["data", "with a space"])
@pytest.mark.parametrize("owner", [65534, 0])
def test_a_cluster_of_nobody_or_of_root_gets_the_servers_own_user_at_the_next_start(
    place: Path, query: Query, name: str, owner: int
) -> None:
    data_dir = place / name
    server = postgres.ensure_running(data_dir)
    query(server.url("postgres"), "CREATE TABLE kept AS SELECT 42 AS answer")
    own = server.uid
    postgres.stop(data_dir)
    # As a copy made by root is: everyone could come up to it, and hold the lock.
    subprocess.run(["chown", "-R", f"{owner}:{owner}", server.cluster], check=True)
    for path, mode in ((data_dir, 0o755), (server.home, 0o755), (server.home / "lock", 0o644)):
        path.chmod(mode)
    old_socket_dir = server.socket_dir
    if old_socket_dir != server.cluster:
        # Left by a kill.
        old_socket_dir.mkdir(0o700)
        os.chown(old_socket_dir, owner, owner)
        (old_socket_dir / f".s.PGSQL.{postgres.PORT}").touch()
    assert postgres.ensure_running(data_dir) == server
    assert query(server.url("postgres"), "SELECT answer FROM kept") == [(42,)]
    assert Path(f"/proc/{postmaster(server)}").stat().st_uid == own
    assert {path.lstat().st_uid for path in (server.cluster, *server.cluster.rglob("*"))} == {own}
    assert server.home.stat().st_mode & 0o777 == 0o700
    assert (server.home / "lock").stat().st_mode & 0o777 == 0o600
    assert old_socket_dir == server.cluster or not old_socket_dir.exists()


@as_root
def test_a_server_that_runs_since_before_the_directories_were_closed_is_used_and_stopped(
    place: Path, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = place / "data"
    home = data_dir / "postgres"
    home.mkdir(parents=True)
    for path in (data_dir, home):
        path.chmod(0o755)
    with monkeypatch.context() as earlier_version:
        earlier_version.setattr(postgres, "close", lambda _: None)
        server = postgres.ensure_running(data_dir)
    running = postmaster(server)
    # As the next version finds it, and at once.
    data_dir.chmod(0o700)
    assert postgres.ensure_running(data_dir) == server
    assert postmaster(server) == running
    server.create_database("more")
    assert query(server.url("more"), "SELECT 1") == [(1,)]
    assert postgres.stop(data_dir)


def test_nobody_else_can_come_up_to_the_lock_or_the_socket_whatever_the_umask(place: Path) -> None:
    before = os.umask(0)
    try:
        server = postgres.ensure_running(place / "data")
    finally:
        os.umask(before)
    assert server.home.stat().st_mode & 0o777 == 0o700
    assert (server.home / "lock").stat().st_mode & 0o777 == 0o600
    assert server.cluster.stat().st_mode & 0o777 == 0o700
    assert (server.socket_dir / f".s.PGSQL.{postgres.PORT}").stat().st_mode & 0o777 == 0o700


@as_root
def test_root_without_the_means_to_become_another_user_is_told_what_they_are(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(EmbeddedPostgresError, match=r"Postgres refuses root(.|\n)*setpriv .*dac_read_search"):
        postgres.ensure_running(place / "data")


@as_root
def test_closed_parent_directories_stay_closed(place: Path, query: Query) -> None:
    closed = place / "closed"
    closed.mkdir(0o700)
    server = postgres.ensure_running(closed / "data")
    assert query(server.url("postgres"), "SELECT 1") == [(1,)]
    assert closed.stat().st_mode & 0o777 == 0o700
    assert server.cluster.stat().st_uid not in (0, 65534)


@as_root
def test_a_whole_checkout_in_a_closed_directory_works(
    place: Path, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = place / "closed"
    closed.mkdir(0o700)
    # The programs too: initdb asks by access(2) whether it may run them, which is not the same as running them.
    package = postgres.binaries().parents[1]
    for part in (package / "pginstall18", package.with_name(f"{package.name}.libs")):
        shutil.copytree(part, closed / part.relative_to(package.parent))
    programs = closed / postgres.binaries().relative_to(package.parent)
    monkeypatch.setattr(embedded_start, "binaries", lambda: programs)
    server = postgres.ensure_running(closed / "data")
    assert query(server.url("postgres"), "SELECT 1") == [(1,)]
    assert closed.stat().st_mode & 0o777 == 0o700


@as_root
def test_root_keeps_the_owner_of_a_cluster(place: Path) -> None:
    server = postgres.ensure_running(place)
    postgres.stop(place)
    subprocess.run(["chown", "-R", "1:1", server.cluster], check=True)
    postgres.ensure_running(place)
    assert Path(f"/proc/{postmaster(server)}").stat().st_uid == 1
