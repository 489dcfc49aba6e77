"""The backup and restore that docs/deploy.md describes, line by line, with the roles of a deployment."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.instance.ref import InstanceRef

from user_pipeline import settings
from user_pipeline.cli.create_tables import create_tables
from user_pipeline.resources.embedded_postgres import SUPERUSER, binaries
from user_pipeline.resources.postgres import Databases
from user_pipeline.settings import Settings
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.deployment import COMPOSE, DEPLOY
from user_pipeline_tests.platform import Platform, update, view
from user_pipeline_tests.servers import PasswordServer, password_server

DATABASES = ("dagster", "staging", "analytics")
ROLES = ("user_pipeline_owner", "user_pipeline_writer", "user_pipeline_dagster", "analyst")
TABLES = [
    ("staging", "page_views"),
    ("staging", "rejected_lines"),
    ("analytics", "users"),
    ("analytics", "user_page_views"),
]
RIGHTS = """
    select relname::text, pg_get_userbyid(relowner)::text, relacl::text from pg_class
    where relnamespace in (select oid from pg_namespace where nspname in ('public', 'pipeline'))
      and relkind in ('r', 'p', 'v', 'S')
    union all select nspname::text, pg_get_userbyid(nspowner)::text, nspacl::text from pg_namespace
    where nspname in ('public', 'pipeline')
    union all select defaclobjtype::text, pg_get_userbyid(defaclrole)::text, defaclacl::text from pg_default_acl
    union all select proname::text, pg_get_userbyid(proowner)::text, proacl::text from pg_proc
    where pronamespace = 'public'::regnamespace
    union all select 'database', pg_get_userbyid(datdba)::text, datacl::text from pg_database
    where datname = current_database()
    order by 1, 2, 3
"""
GUIDE = (CHECKOUT / "docs" / "deploy.md").read_text()
SERVICES = DEPLOY / "sql" / "pg_service.conf"
SECRET = "a secret of the tests"  # noqa: S105


@dataclass(frozen=True)
class Site:
    """A server, who administers it, and the variables with which the docs' commands are run."""

    server: PasswordServer
    administrator: str
    environment: dict[str, str]

    def run(self, command: str) -> None:
        """Run a line of the docs in the root of the checkout; it must succeed and have nothing to say."""
        done = self.attempt(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert not done.stderr, f"{command}\n{done.stderr}"

    def attempt(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a line of the docs, which may fail."""
        return subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=CHECKOUT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def url(self, role: str, database: str) -> str:
        return self.server.url(database, role, SECRET)

    def set_passwords(self) -> None:
        """What `\\password` does, for every role of roles.sql."""
        for role in ROLES:
            self.server.execute(f"alter role {role} password '{SECRET}'")

    def rights(self) -> dict[str, list[tuple[object, ...]]]:
        """Owners and grants of everything in the three databases."""
        return {
            name: self.server.execute(RIGHTS, self.server.superuser_url.replace("/postgres?", f"/{name}?"))
            for name in DATABASES
        }

    def lose(self) -> None:
        """Drop the databases, and the roles with them."""
        for name in DATABASES:
            self.server.execute(f"drop database {name} with (force)")
        for role in ROLES:
            self.server.execute(f"drop role {role}")


@pytest.fixture(params=["superuser", "no superuser", "the owners"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """The administrator is what compose has, what RDS has, or left out of dumping and restoring."""
    with password_server() as server:
        administrator = SUPERUSER if request.param == "superuser" else "admin"
        if administrator != SUPERUSER:
            server.execute(f"create role {administrator} login createrole createdb")
        server.execute(f"alter role {administrator} password '{SECRET}'")
        services = SERVICES
        if request.param == "the owners":
            services = tmp_path / "pg_service.conf"
            services.write_text(own_services())
        passwords = tmp_path / "pgpass"
        passwords.write_text(f"127.0.0.1:{server.port}:*:*:{SECRET}\n")
        passwords.chmod(0o600)
        environment = {
            "PATH": f"{binaries()}:{os.environ['PATH']}",
            "PGSERVICEFILE": str(services),
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGUSER": administrator,
            "PGPASSFILE": str(passwords),
        }
        yield Site(server, administrator, environment)


def own_services() -> str:
    """The shipped service file, changed as the docs say to do without the administrator."""
    shipped = SERVICES.read_text()
    text, changed = re.subn(r"^options=-c role=", "user=", shipped, flags=re.MULTILINE)
    assert changed == len(DATABASES)
    return text


def documented(title: str) -> list[str]:
    """The commands under a title of docs/deploy.md, but for the lake's; the directory of the dumps is ``$BACKUP``."""
    [block] = re.findall(rf"\*\*{title}\*\*.*?\n\n((?: {{4}}[^\n]*\n)+)", GUIDE, re.DOTALL)
    commands = [line.strip() for line in block.splitlines() if "aws s3 sync" not in line]
    return [re.sub(r"/backup/(?:[\d-]+|\$\(date -u \+%F\))", "$BACKUP", command) for command in commands]


def backup_command(site: Site) -> str:
    """The command of the backup, once the variables exported before it are found to be those of ``site``."""
    *exports, command = documented(r"Databases\.")
    exported = dict(word.split("=") for line in exports for word in line.removeprefix("export ").split())
    # The server that comes along is built without TLS.
    assert {name: exported.pop(name) for name in ("PGSSLMODE", "PGSSLROOTCERT")} == {
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/etc/ssl/rds.pem",
    }
    assert set(exported) <= set(site.environment)
    assert CHECKOUT / exported["PGSERVICEFILE"] == SERVICES
    return command


@pytest.fixture
def platform(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """An empty platform that works as the writer, on tables of the owner."""
    site.run("psql service=admin -v ON_ERROR_STOP=1 -qf deploy/sql/roles.sql")
    site.set_passwords()
    for name in ("source", "data"):
        (tmp_path / name).mkdir()
    environment = {
        "USER_PIPELINE_SOURCE_URL": str(tmp_path / "source"),
        "USER_PIPELINE_LAKE_URL": str(tmp_path / "lake"),
        "USER_PIPELINE_DATA_DIR": str(tmp_path / "data"),
        "USER_PIPELINE_SCRATCH_DIR": str(tmp_path / "scratch"),
        "USER_PIPELINE_STAGING_URL": site.url("user_pipeline_owner", "staging"),
        "USER_PIPELINE_ANALYTICS_URL": site.url("user_pipeline_owner", "analytics"),
        "DAGSTER_POSTGRES_URL": site.url("user_pipeline_dagster", "dagster"),
    }
    owner = Databases(Settings.from_environment(environment))
    create_tables(owner)
    owner.close()
    for database in ("staging", "analytics"):
        environment[f"USER_PIPELINE_{database.upper()}_URL"] = site.url("user_pipeline_writer", database)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings.current.cache_clear()
    resolved = Settings.from_environment(environment)
    yield Platform(tmp_path, environment, resolved, Databases(resolved))
    settings.current.cache_clear()


def opened(site: Site, home: Path) -> dg.DagsterInstance:
    """Dagster with its storage in the database of that name."""
    home.mkdir(exist_ok=True)
    storage = f"storage: {{postgres: {{postgres_url: '{site.url('user_pipeline_dagster', 'dagster')}'}}}}\n"
    (home / "dagster.yaml").write_text(storage + "telemetry: {enabled: false}\n")
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home)))


def state(platform: Platform) -> dict[str, object]:
    return {name: platform.table(of, name) for of, name in TABLES}


def test_databases_roles_and_lake_come_back_and_go_on(site: Site, platform: Platform, tmp_path: Path) -> None:
    platform.put("UserUpdates/1", update("2017-04-01T08:00:00", 1))
    platform.put_views("PageViews/1", [view("2017-04-01T09:00:00"), view("2017-04-02T09:00:00", "/b"), "broken"])
    backup = tmp_path / "backup"
    site.environment["BACKUP"] = str(backup)
    with opened(site, tmp_path / "home") as instance:
        assert platform.materialize("2017-04-01", instance=instance).success
        before, rights = state(platform), site.rights()

        site.run(backup_command(site))
        assert {path.name for path in backup.iterdir()} == {f"{name}.dump" for name in DATABASES}
        assert {path.stat().st_mode & 0o777 for path in backup.iterdir()} == {0o600}
        # A day is done after the databases were dumped and before the lake is copied.
        platform.put("UserUpdates/2", update("2017-04-02T08:00:00", 1, "later@example.com"))
        assert platform.materialize("2017-04-02", instance=instance).success
        after = state(platform)
        assert after != before
    lake = platform.root / "lake"
    shutil.copytree(lake, tmp_path / "lake copy")

    # All is lost.
    shutil.rmtree(lake)
    platform.databases.close()
    site.lose()
    shutil.copytree(tmp_path / "lake copy", lake)
    roles, restore = documented("Restore")
    site.run(roles + " -q")
    site.set_passwords()
    site.run(restore)

    restored = Platform(platform.root, platform.environment, platform.settings, Databases(platform.settings))
    assert state(restored) == before
    assert site.rights() == rights
    assert site.server.execute("select count(*) from users", site.url("analyst", "analytics")) == [(1,)]
    # What Dagster does not know to be done is done again: what was read since the dump is read again from the source.
    with opened(site, tmp_path / "home") as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("raw_page_views")) == {"2017-04-01"}
        assert restored.materialize("2017-04-02", instance=instance).success
    assert state(restored) == after
    verified = subprocess.run(
        [Path(sys.executable).with_name("user-pipeline"), "verify"],
        env={**os.environ, **platform.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    restored.databases.close()

    # The same lines where nothing was lost: back to the first day.
    site.run(roles + " -q")
    site.run(restore)
    again = Platform(platform.root, platform.environment, platform.settings, Databases(platform.settings))
    assert state(again) == before
    assert site.rights() == rights
    again.databases.close()


def test_the_container_that_backs_up_has_the_variables_and_the_files() -> None:
    [line] = re.findall(r"^ {4}(docker compose [^\n]*? run (?:[^\n]*\\\n)+[^\n]*backup\.sh .*)$", GUIDE, re.MULTILINE)
    words = shlex.split(line.replace("\\\n", ""))
    volumes = dict(
        words[place + 1].removesuffix(":ro").split(":") for place, word in enumerate(words) if word == "--volume"
    )
    assert volumes == {"$PWD/deploy": "/deploy", "/backup": "/backup"}
    [services] = [word.partition("=")[2] for word in words if word.startswith("PGSERVICEFILE=")]
    service, *command = words[words.index("sh") - 1 :]
    assert command[:2] == ["sh", "/deploy/backup.sh"]
    for inside in (services, command[1]):
        assert (CHECKOUT / inside.lstrip("/")).is_file(), inside
    # The superuser, as in the test above.
    given = COMPOSE["services"][service]["environment"]
    assert {"PGHOST", "PGPASSWORD", "PGSSLMODE", "PGSSLROOTCERT"} <= set(given)
    assert given["PGUSER"] == COMPOSE["services"]["postgres"]["environment"]["POSTGRES_USER"] == SUPERUSER


@pytest.mark.parametrize("site", ["no superuser"], indirect=True)
def test_a_backup_that_is_not_whole_restores_nothing(site: Site, tmp_path: Path) -> None:
    (tmp_path / "dagster.dump").write_bytes(b"")
    done = site.attempt(f"deploy/restore.sh {tmp_path}")
    assert done.returncode == 1
    assert "staging.dump" in done.stderr
