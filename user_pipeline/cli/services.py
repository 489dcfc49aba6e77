"""``user-pipeline up`` and ``down``: what runs on this machine."""

import os
import signal
import socket
import sys
from collections.abc import Sequence

import click

from user_pipeline import liveness, settings
from user_pipeline.cli.checkout import require_checkout, require_guard
from user_pipeline.resources import embedded_postgres as postgres

_PATIENCE = 90.0
"""Seconds: Dagster gives its own processes one minute to stop."""


@click.command()
@click.option("--port", type=click.IntRange(1, 65_535), default=3000, show_default=True, help="Of the UI.")
def up(port: int) -> None:
    """Start the embedded services, then the Dagster UI and daemon.

    Run it in the root of the checkout. Ctrl-C stops Dagster; the embedded Postgres goes on, ready for the
    command line, until `user-pipeline down`. Runs that were killed are marked as failed, now and as long as it runs.

    It refuses to start a second daemon beside one that runs, and to start anything while the port is taken.
    """
    require_checkout()
    require_guard()
    _require_alone()
    _require_port(port)
    if settings.current().uses_embedded_postgres:
        server = postgres.ensure_running(settings.current().data_dir)
        click.echo(f"The embedded Postgres runs in {server.home}.")
    # A shell that starts it with & has it ignore Ctrl-C, and Dagster would then ignore every request to stop.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Only this machine: the UI has no password.
    dagster = ["-m", "dagster", "dev", "-w", "workspace.yaml", "--host", "127.0.0.1", "--port", str(port)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *dagster])  # noqa: S606 - without a shell, on purpose


def _require_alone() -> None:
    """Two daemons would tick every schedule and sensor twice. The lock is for two who start at the same moment."""
    there = [found for found in liveness.living() if found.name.startswith((liveness.UP, liveness.DAEMON))]
    if not there and liveness.hold(liveness.UP, inherited=True):
        return
    raise click.ClickException(
        f"Dagster is up already in {settings.current().data_dir}: {_listed(there) or '`user-pipeline up`'}. "
        "Use that one, or stop it first: Ctrl-C where it was started, or `user-pipeline down --force`."
    )


def _require_port(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise click.ClickException(
            f"The UI cannot have port {port} of 127.0.0.1: {os.strerror(error.errno or 0)}. "
            "Stop what listens there, or choose another with --port."
        ) from error


@click.command()
@click.option("--force", is_flag=True, help="End runs, daemon and UI first.")
def down(*, force: bool) -> None:
    """Stop the embedded Postgres; its data stay.

    Nothing to stop is fine. While a run, `user-pipeline up` or another Dagster uses it, it goes on, and what uses it is
    named. With --force these are asked to stop, and killed if they have not within a minute and a half.
    """
    data_dir = settings.current().data_dir
    running = liveness.living() if postgres.is_running(data_dir) else []
    if running and not force:
        raise click.ClickException(
            f"The embedded Postgres in {data_dir / 'postgres'} is in use by {_listed(running)}. Wait until runs have "
            "ended and stop the UI with Ctrl-C where it was started, or end them all with `user-pipeline down --force`."
        )
    if running:
        click.echo(f"Ending {_listed(running)}.")
        liveness.end(running, _PATIENCE)
    if postgres.stop(data_dir):
        click.echo(f"Stopped the embedded Postgres in {data_dir / 'postgres'}.")
    else:
        click.echo(f"No embedded Postgres runs in {data_dir / 'postgres'}.")


def _listed(processes: Sequence[liveness.Living]) -> str:
    return ", ".join(map(str, processes))
