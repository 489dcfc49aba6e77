"""The `user-pipeline` command. What a command needs is imported when it runs, so that ``--help`` is fast."""

import atexit
import os
import sys
from contextlib import suppress
from typing import Any

import click

from user_pipeline import settings
from user_pipeline.cli.databases import env, init_databases, psql
from user_pipeline.cli.filters import filters
from user_pipeline.cli.forget import forget
from user_pipeline.cli.lake import accept, files, objects, recover, vacuum
from user_pipeline.cli.reconcile import rebuild, verify
from user_pipeline.cli.reread import reread
from user_pipeline.cli.samples import demo, sample
from user_pipeline.cli.services import down, up
from user_pipeline.cli.status import status
from user_pipeline.private_files import keep_private
from user_pipeline.resources import embedded_postgres as postgres


class _Group(click.Group):
    """Prints errors that a user can fix in one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - the interface's
        try:
            return super().invoke(ctx)
        except click.ClickException:
            raise
        except (settings.SettingsError, postgres.EmbeddedPostgresError) as error:
            raise click.ClickException(str(error)) from error
        except Exception as error:
            from user_pipeline.errors import PermanentError, UnavailableError

            if isinstance(error, PermanentError | UnavailableError):
                raise click.ClickException(str(error)) from error
            raise


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.pass_context
def main(context: click.Context) -> None:
    """The user_pipeline platform on this machine.

    \b
    From a fresh checkout:
      user-pipeline sample       write a week of sample logs to the source
      user-pipeline up           the Dagster UI on http://127.0.0.1:3000
      user-pipeline psql         query the tables
      user-pipeline verify       compare the tables with a recompute from the lake
      user-pipeline down         stop the embedded Postgres

    Settings come from the environment (USER_PIPELINE_*, DAGSTER_POSTGRES_URL, AWS_*). Unset, everything
    lives under ./data, in an embedded PostgreSQL 18 that starts when it is first needed.
    """
    if context.invoked_subcommand == filters.name:
        return  # it writes no file, and runs without the settings
    for name, like in settings.unknown_variables().items():
        click.echo(f"Warning: {name} is no setting{f'; is {like} meant?' if like else '.'}", err=True)
    # The command that needs the settings says what is wrong with them; its --help needs none.
    with suppress(settings.SettingsError):
        keep_private()


for command in (
    sample, demo, status, objects, accept, reread, files, vacuum, forget, recover, env, init_databases, psql, verify,
    rebuild, up, down, filters,
):  # fmt: skip
    main.add_command(command)


def run() -> None:
    """The command as a process, which ends without Python's last steps.

    A request to a bucket is answered by a thread of the store's own. If the interpreter is taken apart while that
    thread is still in it, the process is aborted (exit code -6), now and then, whatever the command had said.
    """
    code = 1

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    # Registered first, it runs last: all others that were registered have done their work.
    atexit.register(leave)
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
