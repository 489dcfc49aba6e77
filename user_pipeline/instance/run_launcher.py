"""A launcher of runs in the container of the code server that tells whether a run lives.

Dagster's own launcher for this starts runs as processes of the code server and cannot tell later whether they live. A
run whose container was replaced would stay "started", and the sensor would take its days for in progress.
"""

from dagster import DagsterRun

from user_pipeline.dagster_internals import (
    CanCancelExecutionRequest,
    CanCancelExecutionResult,
    CheckRunHealthResult,
    DagsterUserCodeUnreachableError,
    DefaultRunLauncher,
    WorkerStatus,
    deserialize_value,
)


class WatchedRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, with an answer to run monitoring's question.

    The code server has to be ``dagster api grpc``: it is one process that knows all its runs. (``dagster code-server
    start`` changes to a new process on every reload and then speaks for the runs of that one only.)
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """It does."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the code server that started the run still has its process.

        A server that does not answer says nothing about the run: it counts as alive until the server, or its
        successor, can be asked. A process that dies while its server lives is reported by the server itself.
        """
        client = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if client is None:
            return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "the run names no code server")
        try:
            answer = deserialize_value(
                client.can_cancel_execution(CanCancelExecutionRequest(run_id=run.run_id)), CanCancelExecutionResult
            )
        except DagsterUserCodeUnreachableError:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "the code server does not answer")
        if answer.can_cancel:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "the code server was restarted and has no such run")
