"""The Dagster instance of a checkout, whose processes hold locks while they live, and a launcher that reads these."""

import os
from typing import Any

from dagster import DagsterEventType, DagsterRun

from user_pipeline import liveness
from user_pipeline.dagster_internals import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from user_pipeline.instance import Instance

_ENDS = (DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED)


class CheckoutInstance(Instance):
    """The instance of :mod:`user_pipeline.instance`; runs, daemons and web servers on it show that they live."""

    def handle_new_event(self, event: Any, **options: Any) -> None:  # noqa: ANN401 - the interface's
        """Store an event of Dagster's. A run holds its lock from before it has started until after it has ended."""
        kind = event.dagster_event_type
        if kind == DagsterEventType.RUN_START:  # which only the process of a run itself reports
            liveness.hold(liveness.RUN + event.run_id)
        super().handle_new_event(event, **options)
        if kind in _ENDS:
            liveness.release(liveness.RUN + event.run_id)

    def add_daemon_heartbeat(self, daemon_heartbeat: Any) -> None:  # noqa: ANN401 - the interface's
        """What a daemon calls again and again, and nothing else."""
        liveness.hold(f"{liveness.DAEMON}{os.getpid()}")
        super().add_daemon_heartbeat(daemon_heartbeat)

    def optimize_for_webserver(self, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
        """What a web server calls, and nothing else, before it begins to serve."""
        liveness.hold(f"{liveness.WEB_SERVER}{os.getpid()}")
        super().optimize_for_webserver(statement_timeout, pool_recycle, max_overflow)


class CheckoutRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, with an answer to run monitoring's question.

    It has one for every run of the checkout, those of ``dagster asset materialize`` included, whether the code server
    that started it lives or not.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """It does."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the process of a started run lives. A run that was not started from here is left alone."""
        if liveness.lives(liveness.RUN + run.run_id) is False:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "its process was killed")
        return CheckRunHealthResult(WorkerStatus.RUNNING)
