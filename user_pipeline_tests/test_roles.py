"""The roles of deploy/sql on a server that asks for passwords: each may do its part and nothing else."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
from click.testing import CliRunner

from user_pipeline import settings
from user_pipeline.cli.create_tables import create_tables
from user_pipeline.cli.main import main
from user_pipeline.cli.sample_logs import SampleLogs
from user_pipeline.resources.postgres import Databases
from user_pipeline.resources.postgres_errors import StatementError
from user_pipeline.settings import Settings
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.faults.forked import Parent
from user_pipeline_tests.faults.test_forget_killed import kill_forgetting, visible
from user_pipeline_tests.platform import Platform, update, view
from user_pipeline_tests.s3 import s3_endpoint
from user_pipeline_tests.servers import PasswordServer, password_server

ROLES = CHECKOUT / "deploy/sql/roles.sql"
TABLES = [
    ("staging", "user_updates"),
    ("staging", "page_views"),
    ("staging", "rejected_lines"),
    ("analytics", "users"),
    ("analytics", "user_page_views"),
    ("analytics", "page_recommendations"),
    ("analytics", "page_recommendations_day"),
    ("analytics", "page_recommendations_because"),
    ("analytics", "related_pages"),
    ("analytics", "related_pages_day"),
    ("analytics", "popular_pages"),
    ("analytics", "popular_pages_day"),
    ("analytics", "recommendation_parameters"),
    ("analytics", "recommendation_parameters_day"),
    ("analytics", "recommendation_quality"),
]
PASSWORDS = {
    "user_pipeline_owner": "owner's p@ss:word/1",
    "user_pipeline_writer": "wr%ter=&p@ss?2",
    "analyst": "analyst#3",
    "user_pipeline_dagster": "dagster 4",
}


@dataclass(frozen=True)
class Roles:
    """A server on which deploy/sql/roles.sql was run."""

    server: PasswordServer

    def url(self, role: str, database: str) -> str:
        return self.server.url(database, role, PASSWORDS[role])

    def environment(self, role: str) -> dict[str, str]:
        return {
            "USER_PIPELINE_STAGING_URL": self.url(role, "staging"),
            "USER_PIPELINE_ANALYTICS_URL": self.url(role, "analytics"),
            "DAGSTER_POSTGRES_URL": self.url("user_pipeline_dagster", "dagster"),
        }

    def run_as(self, role: str, database: str, statement: str) -> list[tuple[object, ...]]:
        return self.server.execute(statement, self.url(role, database))


@pytest.fixture(scope="module")
def roles() -> Iterator[Roles]:
    with password_server() as server:
        # No superuser: what RDS gives.
        server.execute("create role admin login createrole createdb password 'admin'")
        for _ in range(2):
            server.run_file(ROLES, server.url("postgres", "admin", "admin"))
        for role, password in PASSWORDS.items():
            server.execute("alter role {} password '{}'".format(role, password.replace("'", "''")))
        made = Roles(server)
        databases = Databases(Settings.from_environment(made.environment("user_pipeline_owner")))
        try:
            for _ in range(2):
                create_tables(databases)
        finally:
            databases.close()
        yield made


@pytest.fixture
def as_writer(roles: Roles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """An empty platform whose databases are used as the writer."""
    for database, table in TABLES:
        roles.run_as("user_pipeline_owner", database, f"truncate public.{table}")
    # Each test has a lake of its own, which the databases of another lake would refuse.
    for database in ("staging", "analytics"):
        there = roles.run_as(
            "user_pipeline_owner", database, "select tablename from pg_tables where schemaname = 'pipeline'"
        )
        named = ", ".join(f"pipeline.{name}" for (name,) in there)
        roles.run_as("user_pipeline_owner", database, f"truncate {named}")
    environment = {
        "USER_PIPELINE_SOURCE_URL": str(tmp_path / "source"),
        "USER_PIPELINE_LAKE_URL": str(tmp_path / "lake"),
        "USER_PIPELINE_DATA_DIR": str(tmp_path / "data"),
        "USER_PIPELINE_SCRATCH_DIR": str(tmp_path / "scratch"),
        **roles.environment("user_pipeline_writer"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings.current.cache_clear()
    resolved = Settings.from_environment(environment)
    (tmp_path / "source").mkdir()
    databases = Databases(resolved)
    yield Platform(tmp_path, environment, resolved, databases)
    databases.close()
    settings.current.cache_clear()


def test_the_whole_pipeline_runs_as_the_writer(as_writer: Platform, roles: Roles) -> None:
    for key, content in SampleLogs(days=2, users=20, views_per_day=200).objects():
        as_writer.put(key, content)
    for day in ("2017-04-01", "2017-04-02"):
        assert as_writer.materialize(day).success
    first = {name: as_writer.table(database, name) for database, name in TABLES}
    assert all(first.values())
    # A day again, a late object, and a shrunken day: every statement there is.
    as_writer.put_views("PageViews/late", [view("2017-04-02T10:00:00", "/late"), "broken"])
    as_writer.put("UserUpdates/late", update("2017-04-02T23:00:00", 1, "late@example.com"))
    assert as_writer.materialize("2017-04-02").success
    as_writer.put_views("PageViews/late", [view("2017-04-01T10:00:00", "/late")])
    assert as_writer.materialize("2017-04-01", "2017-04-02").success
    for database, name in TABLES:
        rows = roles.run_as(
            "user_pipeline_owner", database, f"select tableowner from pg_tables where tablename = '{name}'"
        )
        assert rows == [("user_pipeline_owner",)]


def test_the_writer_repairs_the_tables_with_rebuild(as_writer: Platform, roles: Roles) -> None:
    as_writer.put_views("PageViews/a", [view("2017-04-01T10:00:00"), "broken"])
    as_writer.put("UserUpdates/a", update("2017-04-01T10:00:00"))
    assert as_writer.materialize("2017-04-01").success
    right = {name: as_writer.table(database, name) for database, name in TABLES}
    roles.run_as("user_pipeline_writer", "analytics", "update public.user_page_views set count = 7")
    roles.run_as("user_pipeline_writer", "analytics", "delete from public.users")
    done = CliRunner().invoke(main, ["rebuild"])
    assert done.exit_code == 0, done.output
    assert {name: as_writer.table(database, name) for database, name in TABLES} == right


def test_tables_made_beforehand_are_those_the_pipeline_makes(roles: Roles, platform: Platform) -> None:
    platform.put_views("PageViews/a", [view("2017-04-01T10:00:00"), "broken"])
    platform.put("UserUpdates/a", update("2017-04-01T10:00:00"))
    assert platform.materialize("2017-04-01").success
    shape = """
        select relname::text, attname::text, format_type(atttypid, atttypmod), attnotnull, null
        from pg_attribute join pg_class c on c.oid = attrelid
        where relnamespace = 'public'::regnamespace and attnum > 0 and relkind in ('r', 'p')
        union all
        select tablename::text, indexname::text, indexdef, null, null from pg_indexes where schemaname = 'public'
        union all
        select conrelid::regclass::text, conname::text, pg_get_constraintdef(oid), null, null
        from pg_constraint where connamespace = 'public'::regnamespace
        order by 1, 2, 3
    """
    for database in ("staging", "analytics"):
        made = platform.rows(database, shape)
        assert {row[0].removeprefix("public.") for row in made} == {table for name, table in TABLES if name == database}
        assert roles.run_as("user_pipeline_owner", database, shape) == made


@pytest.mark.parametrize("database", ["staging", "analytics"])
@pytest.mark.parametrize(
    "statement",
    [
        "create table public.mine (x int)",
        "create schema mine",
        "alter table public.{table} add column mine int",
        "drop table public.{table}",
        "create index on public.{table} ({column})",
        "set role user_pipeline_owner",
        "create database mine",
        "create role mine",
        "copy public.{table} to program 'cat'",
    ],
)
def test_the_writer_changes_rows_and_nothing_else(roles: Roles, database: str, statement: str) -> None:
    table, column = {"staging": ("page_views", "ts"), "analytics": ("users", "email")}[database]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        roles.run_as("user_pipeline_writer", database, statement.format(table=table, column=column))


def test_an_analyst_reads_the_analytics_database(roles: Roles) -> None:
    for database, table in [*TABLES, ("analytics", "page_recommendation_reasons")]:
        if database == "analytics":
            assert roles.run_as("analyst", database, f"select count(*) >= 0 from public.{table}") == [(True,)]
    # What the owner makes later, too.
    roles.run_as("user_pipeline_owner", "analytics", "create table public.later (x int)")
    try:
        assert roles.run_as("analyst", "analytics", "select * from public.later") == []
        assert roles.run_as("user_pipeline_writer", "analytics", "insert into public.later values (1)") == []
    finally:
        roles.run_as("user_pipeline_owner", "analytics", "drop table public.later")


@pytest.mark.parametrize(
    "statement",
    [
        "insert into public.users values (1, 'a', 'a', now())",
        "update public.users set email = ''",
        "delete from public.users",
        "truncate public.users",
        "create table public.mine (x int)",
        "create temporary table mine (x int)",
        "lock table public.users in share row exclusive mode",
        "set role user_pipeline_writer",
    ],
)
def test_an_analyst_only_reads(roles: Roles, statement: str) -> None:
    # Asked for so, as the role's default of reading only is but a default.
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        roles.run_as("analyst", "analytics", "begin read write; " + statement)


def test_a_statement_of_an_analyst_ends_after_five_minutes_and_one_of_the_pipeline_does_not(roles: Roles) -> None:
    assert roles.run_as("analyst", "analytics", "show statement_timeout") == [("5min",)]
    for role, database in (("user_pipeline_writer", "analytics"), ("user_pipeline_owner", "staging")):
        assert roles.run_as(role, database, "show statement_timeout") == [("0",)]


def test_what_an_analyst_was_granted_beside_the_script_is_gone_after_it(roles: Roles) -> None:
    roles.server.execute("grant temporary on database analytics to analyst")
    roles.server.execute("grant connect on database staging to analyst")
    assert roles.run_as("analyst", "analytics", "begin read write; create temporary table mine (x int)") == []
    roles.server.run_file(ROLES, roles.server.url("postgres", "admin", "admin"))
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        roles.run_as("analyst", "analytics", "begin read write; create temporary table mine (x int)")
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        roles.run_as("analyst", "staging", "select 1")


def test_an_analyst_makes_no_temporary_table_in_the_servers_own_database(roles: Roles) -> None:
    # Every role may connect there. Only its owner, or a superuser, can take the right away.
    temporary = "begin read write; create temporary table mine (x int)"
    assert roles.run_as("analyst", "postgres", temporary) == []
    roles.server.execute("alter database postgres owner to admin")
    try:
        roles.server.run_file(ROLES, roles.server.url("postgres", "admin", "admin"))
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            roles.run_as("analyst", "postgres", temporary)
    finally:
        roles.server.execute("alter database postgres owner to postgres")
        roles.server.execute("grant temporary on database postgres to public")


def test_a_role_of_a_person_made_as_the_docs_say_reads_within_the_limits_of_an_analyst(roles: Roles) -> None:
    guide = (ROLES.parents[2] / "docs" / "access.md").read_text()
    [block] = re.findall(r"((?: {4}[^\n]*someone[^\n]*\n)+)", guide)
    roles.server.execute(block, roles.server.url("postgres", "admin", "admin"))
    try:
        roles.server.execute("alter role someone password 'someone'")
        url = roles.server.url("analytics", "someone", "someone")
        assert roles.server.execute("select count(*) >= 0 from public.users", url) == [(True,)]
        assert roles.server.execute("show statement_timeout", url) == [("5min",)]
        for statement in ("begin read write; create temporary table mine (x int)", "delete from public.users"):
            with pytest.raises((psycopg2.errors.InsufficientPrivilege, psycopg2.errors.ReadOnlySqlTransaction)):
                roles.server.execute(statement, url)
    finally:
        roles.server.execute("drop role someone")


def test_nobody_but_the_owner_hands_rights_on(roles: Roles) -> None:
    # Postgres only warns of a grant that gives nothing.
    roles.run_as("user_pipeline_writer", "analytics", "grant insert on public.users to analyst")
    rows = roles.run_as("analyst", "analytics", "select has_table_privilege('public.users', 'insert')")
    assert rows == [(False,)]
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        roles.run_as("analyst", "analytics", "delete from public.users")


@pytest.mark.parametrize(
    ("role", "database"),
    [
        ("analyst", "staging"),
        ("analyst", "dagster"),
        ("user_pipeline_writer", "dagster"),
        ("user_pipeline_dagster", "staging"),
        ("user_pipeline_dagster", "analytics"),
    ],
)
def test_a_role_reaches_no_database_but_its_own(roles: Roles, role: str, database: str) -> None:
    with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
        roles.run_as(role, database, "select 1")


def test_the_command_makes_tables_and_a_writer_without_them_is_told_of_it(
    roles: Roles, as_writer: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_writer.put_views("PageViews/a", [view("2017-04-01T10:00:00")])
    roles.run_as("user_pipeline_owner", "staging", "drop table public.page_views")
    result = as_writer.materialize("2017-04-01", raise_on_error=False)
    [failed] = result.get_step_failure_events()
    problem = failed.step_failure_data.user_failure_data
    assert problem is not None
    assert "USER_PIPELINE_STAGING_URL: Postgres says: permission denied for" in str(problem.description)
    assert "user-pipeline init-databases" in str(problem.description)
    for name, value in roles.environment("user_pipeline_owner").items():
        monkeypatch.setenv(name, value)
    command = [str(Path(sys.executable).with_name("user-pipeline")), "init-databases"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == (
        "USER_PIPELINE_STAGING_URL: accepted_days, announced_objects, days_to_remake, further_fields, ingested_days, "
        "ingested_objects, lake, lake_commits, lake_files, lake_partitions, listings, page_views, rejected_lines, "
        "removals, replaced_files, retirement, suppressed_users, suppression_key, user_updates\n"
        "USER_PIPELINE_ANALYTICS_URL: days_to_remake, lake, lake_commits, lake_files, lake_partitions, "
        "page_recommendations, page_recommendations_because, page_recommendations_day, popular_pages, "
        "popular_pages_day, recommendation_parameters, recommendation_parameters_day, recommendation_quality, "
        "related_pages, related_pages_day, removals, user_page_views, users\n"
    )
    assert as_writer.materialize("2017-04-01").success


def test_who_may_not_make_tables_is_told_so_by_the_command(as_writer: Platform, roles: Roles) -> None:
    roles.run_as("user_pipeline_owner", "analytics", "drop table public.page_recommendations cascade")
    try:
        with pytest.raises(StatementError, match="USER_PIPELINE_ANALYTICS_URL: Postgres says: permission denied"):
            create_tables(as_writer.databases)
    finally:
        create_tables(Databases(Settings.from_environment(roles.environment("user_pipeline_owner"))))


def test_forgetting_in_a_bucket_as_the_writer_is_killed_and_finished(
    as_writer: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def choose(calls: list[str]) -> list[int]:
        points = visible(calls)
        return points if request.config.getoption("--every-kill") else [points[len(points) // 2]]

    with s3_endpoint(monkeypatch, "source", "lake") as endpoint, Parent.start(tmp_path) as parent:
        environment = {
            **as_writer.environment,
            "USER_PIPELINE_SOURCE_URL": "s3://source/logs",
            "USER_PIPELINE_LAKE_URL": "s3://lake/up",
            "USER_PIPELINE_RECOMMENDATION_MIN_VIEWERS": "1",
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        settings.current.cache_clear()
        resolved = Settings.from_environment(environment)
        platform = Platform(tmp_path, environment, resolved, as_writer.databases)
        assert kill_forgetting(parent, platform, tmp_path / "calls", choose)
        # Nothing that names the person, whatever it was for.
        for key in endpoint.keys("lake"):
            content = endpoint.client.get_object(Bucket="lake", Key=key)["Body"].read()
            assert b"u1@example.com" not in content, key
        assert not (tmp_path / "lake").exists()
