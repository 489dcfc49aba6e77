"""Commands on the settings and the databases they name."""

import os
import shlex
import shutil
from pathlib import Path

import click
from pydantic import ByteSize, SecretStr

from user_pipeline import setting_values, settings
from user_pipeline.resources import embedded_postgres as postgres


@click.command()
def env() -> None:
    """Print every resolved setting as a line of shell, under what it means.

    \b
      eval "$(user-pipeline env)"
      psql "$USER_PIPELINE_ANALYTICS_URL" -c 'select * from user_page_views limit 3'

    Starts the embedded Postgres if a setting resolves to it. Passwords of databases are printed as they are;
    AWS_* variables, the webhook of alerts and the key of user ids are not printed.
    """
    # All lines before any is printed: if the server does not start, nothing is.
    lines = [_shell(field, value) for field, value in settings.current() if value not in (None, ())]
    for line in lines:
        click.echo(line)


def _shell(field: str, value: object) -> str:
    """A setting as a line of shell, under a comment with its description."""
    variable = settings.variable_of(field)
    meaning = f"# {settings.Settings.model_fields[field].description}\n"
    match value:
        case setting_values.Webhook():
            return f"{meaning}# {variable} is set, to {value}"
        case SecretStr():
            return f"{meaning}# {variable} is set"
        case setting_values.Database():
            text = postgres.database_url(value)
        case ByteSize():
            unit = next(unit for unit in ("GB", "MB", "MiB", "B") if value.to(unit).is_integer())
            text = f"{value.to(unit):.0f}{unit}"
        case tuple():
            text = ",".join(value)
        case _:
            text = str(value)
    # Always quoted, so that all lines have the same form.
    return f"{meaning}export {variable}=" + (f"'{text}'" if shlex.quote(text) == text else shlex.quote(text))


@click.command()
def init_databases() -> None:
    """Make every table in the staging and analytics databases, as their owner.

    \b
      USER_PIPELINE_STAGING_URL=postgresql://user_pipeline_owner@db/staging \\
      USER_PIPELINE_ANALYTICS_URL=postgresql://user_pipeline_owner@db/analytics user-pipeline init-databases

    The pipeline then needs no right to make tables (deploy/sql/roles.sql). Tables that are there stay as they
    are; after an upgrade run it again.
    """
    from user_pipeline.cli.create_tables import create_tables
    from user_pipeline.resources.postgres import Databases

    databases = Databases(settings.current())
    try:
        for variable, tables in create_tables(databases).items():
            click.echo(f"{variable}: {', '.join(tables)}")
    finally:
        databases.close()


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[analytics|staging|dagster] [PSQL_OPTIONS]...")
def psql(arguments: tuple[str, ...]) -> None:
    """Open psql on a database of the platform, analytics unless another is named; nothing has to be installed.

    \b
      user-pipeline psql
      user-pipeline psql -c 'select * from user_page_views limit 3'
      user-pipeline psql staging -c 'select reason, count(*) from rejected_lines group by 1'

    All else goes to psql as it is.
    """
    database = "analytics"
    if arguments and arguments[0] in ("analytics", "staging", "dagster"):
        database, arguments = arguments[0], arguments[1:]
    setting = getattr(settings.current(), database)
    # In the environment, because the arguments of a process are public and the URL may hold a password.
    environment = {**os.environ, **_libpq_environment(postgres.database_url(setting))}
    program = _psql(setting, environment.get("PGSSLMODE", ""))
    os.execve(program, [str(program), *arguments], environment)  # noqa: S606 - without a shell, on purpose


def _psql(setting: setting_values.Database, sslmode: str) -> Path:
    if sslmode not in ("require", "verify-ca", "verify-full"):
        return postgres.binaries() / "psql"
    installed = shutil.which("psql")
    if installed is None:
        raise click.ClickException(
            f"{setting.variable} asks for sslmode={sslmode}, and the psql that comes along has no TLS: "
            "install PostgreSQL's psql."
        )
    return Path(installed)


def _libpq_environment(url: str) -> dict[str, str]:
    """A URL as the variables libpq reads: https://www.postgresql.org/docs/current/libpq-envars.html."""
    from psycopg2.extensions import parse_dsn

    named_otherwise = {"dbname": "PGDATABASE", "application_name": "PGAPPNAME"}
    return {named_otherwise.get(key, f"PG{key.upper()}"): value for key, value in parse_dsn(url).items()}
