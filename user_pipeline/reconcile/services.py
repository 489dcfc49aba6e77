"""Whether engine, stores and databases answer.

A service that does not answer within some seconds has a problem: a firewall may drop packets without a reply.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from user_pipeline.engines import open_engine
from user_pipeline.masking import mask
from user_pipeline.resources.postgres import Postgres
from user_pipeline.setting_values import Database, Location, hide_password
from user_pipeline.settings import Settings

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

PATIENCE = 10.0
"""Seconds for a service to answer."""


@dataclass(frozen=True, slots=True)
class Service:
    """Something the platform needs.

    Attributes:
        name: what it is.
        setting: the variable that names it.
        value: what that resolves to, without a password.
        problem: why it cannot be used; None if it answers.
    """

    name: str
    setting: str
    value: str
    problem: str | None = None


def services(current: Settings, storage: "ObjectStorage", databases: "Databases") -> list[Service]:
    """Ask engine, stores and databases whether they answer, all at once."""
    dagster, engine = Postgres(current.dagster), open_engine(current)
    probes: list[tuple[Service, Callable[[], object]]] = [
        (Service("engine", *engine.service), lambda: _probe(engine)),
        (_store("source", current.source), lambda: storage.source),
        (_store("lake", current.lake), lambda: storage.lake),
        (_database("staging", current.staging), lambda: _fetch(databases.staging, "select 1")),
        (_database("analytics", current.analytics), lambda: _fetch(databases.analytics, "select 1")),
        (_database("runs", current.dagster), lambda: _fetch(dagster, "select 1")),
    ]  # fmt: skip
    try:
        answers = [_Answer(probe) for _, probe in probes]
        return [
            Service(service.name, service.setting, service.value, answer.problem(PATIENCE))
            for (service, _), answer in zip(probes, answers, strict=True)
        ]
    finally:
        dagster.close()


class _Answer:
    """The outcome of a call in a daemon thread, so that a call that hangs does not keep the process from ending."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def problem(self, seconds: float) -> str | None:
        """Why it failed, or that it has not ended; None if it succeeded."""
        self._thread.join(seconds)
        return f"no answer within {seconds:.0f} seconds" if self._thread.is_alive() else self._error

    def _run(self) -> None:
        try:
            self._call()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            self._error = mask(str(error)).strip() or type(error).__name__


def _probe(engine: "Engine") -> None:
    with engine:
        engine.probe()


def _store(name: str, location: Location) -> Service:
    return Service(name, location.variable, str(location))


def _database(name: str, database: Database) -> Service:
    url = hide_password(database.url.get_secret_value()) if database.url else f"embedded, {database.name}"
    return Service(name, database.variable, url)


def _fetch(database: Postgres, sql: str) -> object:
    with database.transaction() as transaction:
        return transaction.fetch(sql)
