"""The settings of Postgres in ``deploy/``: the same everywhere, and those of a server that was given them."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from user_pipeline.resources.embedded_postgres import EmbeddedPostgres, ensure_running, stop
from user_pipeline_tests import CHECKOUT
from user_pipeline_tests.deployment import COMPOSE, DEPLOY
from user_pipeline_tests.platform import Platform, view

COMMAND: dict[str, str] = dict(
    option.removeprefix("-c").split("=", 1) for option in COMPOSE["services"]["postgres"]["command"][1:]
)
RDS: dict[str, dict[str, str]] = {
    each["ParameterName"]: each for each in json.loads((DEPLOY / "rds-parameters.json").read_text())
}
# The embedded server is built without it.
LACKING = {"wal_compression"}
UNITS = {"B": 1, "kB": 2**10, "MB": 2**20, "GB": 2**30, "8kB": 2**13, "ms": 1e-3, "s": 1, "min": 60}
Query = Callable[..., list[tuple[Any, ...]]]


def amount(text: str, unit: str | None) -> object:
    """What a value means: a number in bytes or seconds, or the text as it is."""
    matched = re.fullmatch(r"(\d+)\s*([kMG]?B|8kB|ms|s|min)?", text)
    if not matched:
        return {"on": "1", "off": "0"}.get(text, text)
    return int(matched[1]) * UNITS[matched[2] or unit or "B"] if matched[2] or unit else matched[1]


@pytest.fixture(scope="module")
def settings_of(server: EmbeddedPostgres) -> dict[str, dict[str, Any]]:
    """``pg_settings`` of a server that was started with the settings of the compose file."""
    import psycopg2

    def connect() -> Any:
        connection = psycopg2.connect(server.url("postgres"))
        connection.autocommit = True
        return connection

    connection = connect()
    with connection.cursor() as cursor:
        for name, value in COMMAND.items():
            if name not in LACKING:
                cursor.execute(f"alter system set {name} = '{value}'")
    connection.close()
    data_dir = server.home.parent
    assert stop(data_dir)
    ensure_running(data_dir)
    connection = connect()
    with connection.cursor() as cursor:
        cursor.execute("select name, setting, unit, context, source, enumvals from pg_settings")
        found = {
            name: {"setting": setting, "unit": unit, "context": context, "source": source, "enumvals": enumvals}
            for name, setting, unit, context, source, enumvals in cursor.fetchall()
        }
    connection.close()
    return found


def test_a_server_that_is_given_the_settings_has_them(settings_of: dict[str, dict[str, Any]]) -> None:
    assert {"max_wal_size", "checkpoint_timeout", "wal_compression", "shared_buffers"} <= set(COMMAND)
    for name, value in COMMAND.items():
        there = settings_of[name]
        if name in LACKING:
            assert value not in there["enumvals"]
            continue
        assert amount(there["setting"], there["unit"]) == amount(value, there["unit"]), name
        assert there["source"] == "configuration file", name


def test_rds_has_the_same_settings_in_its_units(settings_of: dict[str, dict[str, Any]]) -> None:
    assert set(RDS) == set(COMMAND)
    for name, parameter in RDS.items():
        there = settings_of[name]
        # What needs a start is refused by RDS to be applied at once.
        needs_start = there["context"] == "postmaster"
        assert parameter["ApplyMethod"] == ("pending-reboot" if needs_start else "immediate"), name
        if name != "shared_buffers":
            assert amount(parameter["ParameterValue"], there["unit"]) == amount(COMMAND[name], there["unit"]), name
    # Pages of 8 kB, a quarter of what the instance has.
    assert RDS["shared_buffers"]["ParameterValue"] == f"{{DBInstanceClassMemory/{4 * 8192}}}"


def test_every_setting_is_in_the_guide_with_its_reason() -> None:
    guide = (CHECKOUT / "docs/deploy.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \| ([^|]+) \|$", guide, re.MULTILINE)
    assert {name for name, _ in rows} >= set(COMMAND)
    assert all(len(reason) > 20 for _, reason in rows)


def test_tables_that_change_most_are_vacuumed_sooner(platform: Platform) -> None:
    platform.put_views("PageViews/a", [view("2017-04-01T10:00:00")])
    assert platform.materialize("2017-04-01", checks=False).success
    for database, table in (
        ("analytics", "public.user_page_views"),
        ("staging", "pipeline.ingested_objects"),
        ("staging", "pipeline.ingested_days"),
    ):
        [(options,)] = platform.rows(
            database, f"select array_to_string(reloptions, ' ') from pg_class where oid = '{table}'::regclass"
        )
        assert "autovacuum_analyze_scale_factor=0.02" in options
        assert "autovacuum_vacuum_insert_scale_factor=0.02" in options
