"""The `user-pipeline` command. What a command needs is imported when it runs, so that ``--help`` is fast."""

import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ByteSize, SecretStr

from user_pipeline import liveness, settings
from user_pipeline.cli.filters import filters
from user_pipeline.cli.reread import reread
from user_pipeline.masking import mask, printable
from user_pipeline.private_files import keep_private
from user_pipeline.resources import embedded_postgres as postgres

if TYPE_CHECKING:
    from user_pipeline.resources.object_store import Store

_INSTANCE_CLASS = {"module": "user_pipeline.instance.checkout", "class": "CheckoutInstance"}
_PATIENCE = 90.0
"""Seconds: Dagster gives its own processes one minute to stop."""


class _Group(click.Group):
    """Says in one line what a user can put right, instead of a traceback."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - the interface's
        try:
            return super().invoke(ctx)
        except click.ClickException:
            raise
        except (settings.SettingsError, postgres.EmbeddedPostgresError) as error:
            raise click.ClickException(str(error)) from error
        except Exception as error:
            from user_pipeline.errors import PermanentError

            if isinstance(error, PermanentError):
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
        return  # it writes no file, and is started where the settings are not
    # The command that needs the settings says what is wrong with them; its --help needs none.
    with suppress(settings.SettingsError):
        keep_private()


@main.command()
@click.option("--days", type=click.IntRange(1), default=7, show_default=True, help="Days of events.")
@click.option("--users", type=click.IntRange(1), default=1_000, show_default=True, help="People who visit.")
@click.option("--views-per-day", type=click.IntRange(0), default=20_000, show_default=True, help="Page views a day.")
@click.option(
    "--start",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="YYYY-MM-DD",
    help="The first day.  [default: USER_PIPELINE_START_DATE]",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Another seed, other people.")
def sample(days: int, users: int, views_per_day: int, start: datetime | None, seed: int) -> None:
    """Write sample logs of both feeds to USER_PIPELINE_SOURCE_URL.

    They look as real ones do: late events, duplicates inside and across objects, other environments, names
    that say nothing about dates, a gzipped object, and a few broken lines of each kind.

    The same options write the same bytes on any machine. An object that is already there with the same
    content is left alone, one that is not part of the sample always; more --days add to fewer.
    """
    first_day = start.date() if start else settings.current().start_date
    last_day = datetime.now(UTC).date()
    if (last_day - first_day).days + 1 < days:
        raise click.BadParameter(f"{days} days from {first_day} on end after today, {last_day}.")
    _write_sample(days, users, views_per_day, first_day, seed)


def _write_sample(days: int, users: int, views_per_day: int, first_day: date, seed: int) -> None:
    """Write the sample to the source, and say what was written."""
    from user_pipeline.cli.sample_logs import SampleLogs
    from user_pipeline.resources.object_store import open_store

    current = settings.current()
    store = open_store(current.source)
    written = total = size = 0
    try:
        for key, content in SampleLogs(days, users, views_per_day, first_day, seed).objects():
            total, size = total + 1, size + len(content)
            if _content(store, key) != content:
                store.put(key, content)
                written += 1
    except Exception as error:
        reason = mask(str(error)).split("\n\nDebug source:")[0]
        message = f"{current.source.variable}={current.source}: cannot be written to: {reason}"
        raise click.ClickException(message) from error
    click.echo(
        f"{total} objects of {size / 1e6:.1f} MB in {current.source}, {written} of them written now: "
        f"{days} days from {first_day} on."
    )


def _content(store: "Store", key: str) -> bytes | None:
    try:
        return bytes(store.get(key).bytes())
    except FileNotFoundError:
        return None


@main.command()
@click.option("--days", type=click.IntRange(1, 366), default=7, show_default=True, help="Days of sample logs.")
def demo(days: int) -> None:
    """Show it all: sample logs through the whole pipeline, then the accounting and the tables.

    Run it in the root of the checkout. It writes the logs of `user-pipeline sample` to the source,
    materializes their days in one run, and prints what came out. Doing it again changes nothing.
    """
    from user_pipeline.cli.demo import run_demo

    _require_checkout()
    current = settings.current()
    if current.source.is_s3:
        raise click.ClickException(
            f"{current.source.variable}={current.source}: the demo writes made-up logs, not into a bucket. Unset it."
        )
    _write_sample(days, users=1_000, views_per_day=20_000, first_day=current.start_date, seed=1)
    run_demo(current, days)


@main.command()
@click.option(
    "--day", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD", help="Only those with rows of this day."
)
@click.option("--unread", is_flag=True, help="Only those that could not be read, and why.")
def objects(day: datetime | None, *, unread: bool) -> None:
    """List the objects that were read, with the days they brought rows for.

    A line for each object: feed, key, rows (of the day, if one is given), rejected lines, and the days. Of one that
    went through a filter it says so: its lines are those of what the filter gave.
    """
    from user_pipeline.ingest.feeds import FEEDS
    from user_pipeline.ingest.manifest import Manifest
    from user_pipeline.lake.lake import Lake
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

    current = settings.current()
    with closing(Databases(current)) as databases:
        lake = Lake(ObjectStorage(current), databases)
        for feed in FEEDS:
            manifest = Manifest(feed, lake.staging)
            for entry in manifest.unread() if unread else manifest.entries(day.date() if day else None):
                on_day = entry.days.get(day.date()) if day else None
                if day and not on_day:
                    continue
                rows = on_day.rows if on_day else entry.rows
                days = f"{min(entry.days)}...{max(entry.days)}" if entry.days else "no day"
                problem = entry.error or (entry.failure and f"not fetched: {entry.failure.error}") or ""
                numbers = f"{rows:,} rows  {entry.rejects:,} rejected"
                filtered = "  filtered" if entry.filter else ""
                click.echo(f"{feed.name}  {printable(entry.key)}  {numbers}  {days}{filtered}  {problem}".rstrip())


@main.command()
@click.argument("feed", type=click.Choice(["user_updates", "page_views"]))
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD", help="Only this day.")
@click.option("--from", "first", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD", help="The first day.")
@click.option("--to", "last", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD", help="The last day.")
def accept(feed: str, day: datetime | None, first: datetime | None, last: datetime | None) -> None:
    """Let days of a feed pass though most of their lines were rejected.

    What was read for the days until now does not fail the check reject_share_of_day any more; what is read later does.
    Then materialize the days.
    """
    from user_pipeline.ingest.feeds import FEEDS
    from user_pipeline.ingest.intake import accept_on_purpose
    from user_pipeline.ingest.manifest import Manifest
    from user_pipeline.lake.registry import Registry
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

    begin, end = (day, day) if day else (first, last)
    if begin is None or end is None or end < begin or (day and (first or last)):
        raise click.UsageError("give --day, or --from and --to in this order")
    days = [begin.date() + timedelta(days=number) for number in range((end - begin).days + 1)]
    current = settings.current()
    with closing(Databases(current)) as databases:
        registry = Registry("staging", databases.staging, ObjectStorage(current))
        [manifest] = [Manifest(each, registry) for each in FEEDS if each.name == feed]
        accept_on_purpose(manifest, days, "user-pipeline accept")
    click.echo(f"{feed}: what was read until now is accepted for {days[0]}...{days[-1]}; materialize these days now")


@main.command()
@click.argument("asset")
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD", help="Only this day.")
@click.option("--from", "first", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD", help="The first day.")
@click.option("--to", "last", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD", help="The last day.")
def files(asset: str, day: datetime | None, first: datetime | None, last: datetime | None) -> None:
    """Print the Parquet files of an asset, one a line, for DuckDB, Polars, pandas or Spark.

    \b
      user-pipeline files page_views --day 2017-04-15
      user-pipeline files user_page_views --from 2017-04-01 --to 2017-04-07

    Paths, or s3:// addresses where the lake is a bucket. A file never changes, and stays for two days after a
    partition was written again.
    """
    from user_pipeline.lake.lake import Lake
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

    if day and (first or last):
        raise click.BadParameter("--day cannot be used with --from or --to.")
    first, last = day or first, day or last
    if first and last and last < first:
        raise click.BadParameter(f"--to {last:%Y-%m-%d} lies before --from {first:%Y-%m-%d}.")
    current = settings.current()
    with closing(Databases(current)) as databases:
        lake = Lake(ObjectStorage(current), databases)
        for url in lake.urls(asset, first.date() if first else None, last.date() if last else None):
            click.echo(url)


@main.command()
def vacuum() -> None:
    """Remove from the lake what nothing refers to any more.

    When an object or a day is read or made again, what was there before stays behind in the lake; so does what a
    run wrote that was cut off. It goes two days after it was replaced: somebody may still be reading it. What all
    logs of the lake tell is put into one before.
    """
    from user_pipeline.ingest.vacuum import vacuum as remove
    from user_pipeline.lake.lake import Lake
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

    current = settings.current()
    with closing(Databases(current)) as databases:
        removed = remove(Lake(ObjectStorage(current), databases), datetime.now(UTC))
    click.echo(f"removed {removed.files:,} files of {removed.size / 1e6:,.1f} MB and {removed.logs:,} logs")


@main.command()
def recover() -> None:
    """Fill new databases again from the lake, without the source.

    What each object brought, the rejected lines, which files make up each partition, and the tables users and
    user_page_views come from the lake. Then materialize all days: the other tables come back, and no object is read
    again. A database that is not empty stays as it is.
    """
    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.lake.lake import Lake
    from user_pipeline.reconcile.full_refresh import recover as fill
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

    current = settings.current()
    with Engine(current) as engine, closing(Databases(current)) as databases:
        for what, count in fill(Lake(ObjectStorage(current), databases), engine).items():
            click.echo(f"{what}: {count:,}")


@main.command()
def env() -> None:
    """Print every resolved setting as a line of shell, under what it means.

    \b
      eval "$(user-pipeline env)"
      psql "$USER_PIPELINE_ANALYTICS_URL" -c 'select * from user_page_views limit 3'

    Starts the embedded Postgres if a setting resolves to it. Passwords of databases are printed as they are;
    AWS_* variables, the webhook of alerts and the key of user ids are not printed.
    """
    # All of it before any is printed: a server that does not start leaves no half.
    lines = [_shell(field, value) for field, value in settings.current() if value not in (None, ())]
    for line in lines:
        click.echo(line)


@main.command()
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


@main.command(context_settings={"ignore_unknown_options": True})
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


def _psql(setting: settings.Database, sslmode: str) -> Path:
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


@main.command()
@click.option("--from", "first", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD", help="The first day.")
@click.option("--to", "last", type=click.DateTime(["%Y-%m-%d"]), metavar="YYYY-MM-DD", help="The last day.")
def verify(first: datetime | None, last: datetime | None) -> None:
    """Compare what is stored with a full recompute from the lake; exit with 1 if anything differs.

    Every day whose raw partition is in the lake is computed anew from what was delivered and compared with the
    tables of both databases, row by row and column by column. The differences are printed with the commands
    that repair them; people's names and e-mail addresses are not.

    With --from or --to only tables that are kept by the day are compared.
    """
    from user_pipeline.cli.verify_report import report
    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.lake.lake import Lake
    from user_pipeline.reconcile.verify import verify as compare
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

    if first and last and last < first:
        raise click.BadParameter(f"--to {last:%Y-%m-%d} lies before --from {first:%Y-%m-%d}.")
    current = settings.current()
    with Engine(current) as engine, closing(Databases(current)) as databases:
        compared = compare(
            Lake(ObjectStorage(current), databases),
            engine,
            first=first.date() if first else None,
            last=last.date() if last else None,
        )
        if report(compared, click.echo):
            sys.exit(1)


@main.command()
def rebuild() -> None:
    """Bring rejected_lines, users and user_page_views in line with the lake (a full refresh).

    rejected_lines comes from the rejects in the lake, the other two from their daily aggregates. Each is changed in
    one transaction, and only where it differs; readers see the old or the new rows. Needed after someone else wrote
    to these tables.
    """
    from user_pipeline.engines.duckdb import Engine
    from user_pipeline.lake.lake import Lake
    from user_pipeline.reconcile.full_refresh import refresh_marts, refresh_rejected_lines
    from user_pipeline.resources.postgres import Databases
    from user_pipeline.resources.storage import ObjectStorage

    current = settings.current()
    with Engine(current) as engine, closing(Databases(current)) as databases:
        lake = Lake(ObjectStorage(current), databases)
        lines = refresh_rejected_lines(lake, engine)
        click.echo(f"rejected_lines: {lines:,} lines from {current.lake}")
        for table, rows in refresh_marts(lake, engine).items():
            click.echo(f"{table}: {rows:,} rows put right")


def _shell(field: str, value: object) -> str:
    """What a setting resolves to as a line of shell, below what it means."""
    variable = settings.variable_of(field)
    meaning = f"# {settings.Settings.model_fields[field].description}\n"
    match value:
        case settings.Webhook():
            return f"{meaning}# {variable} is set, to {value}"
        case SecretStr():
            return f"{meaning}# {variable} is set"
        case settings.Database():
            text = postgres.database_url(value)
        case ByteSize():
            unit = next(unit for unit in ("GB", "MB", "MiB", "B") if value.to(unit).is_integer())
            text = f"{value.to(unit):.0f}{unit}"
        case tuple():
            text = ",".join(value)
        case _:
            text = str(value)
    # Always quoted, so that the lines look alike.
    return f"{meaning}export {variable}=" + (f"'{text}'" if shlex.quote(text) == text else shlex.quote(text))


@main.command()
@click.option("--port", type=click.IntRange(1, 65_535), default=3000, show_default=True, help="Of the UI.")
def up(port: int) -> None:
    """Start the embedded services, then the Dagster UI and daemon.

    Run it in the root of the checkout. Ctrl-C stops Dagster; the embedded Postgres goes on, ready for the
    command line, until `user-pipeline down`. Runs that were killed are marked as failed, now and as long as it runs.

    It refuses to start a second daemon beside one that runs, and to start anything while the port is taken.
    """
    _require_checkout()
    _require_guard()
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


def _require_checkout() -> None:
    missing = [name for name in ("workspace.yaml", "dagster.yaml") if not Path(name).is_file()]
    if missing:
        raise click.ClickException(
            f"There is no {' and no '.join(missing)} in {Path.cwd()}: run this in the root of the checkout."
        )


def _require_guard() -> None:
    """The web server of another instance than ours would do what any web site asks of it."""
    import yaml

    path = Path(os.environ.get("DAGSTER_HOME") or Path.cwd(), "dagster.yaml")
    instance: Any = None
    with suppress(OSError, yaml.YAMLError):
        instance = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(instance, dict) or instance.get("instance_class") != _INSTANCE_CLASS:
        raise click.ClickException(
            f"{path} lacks the entry instance_class of the checkout's dagster.yaml: without it any web site could use "
            "the UI through your browser. Copy the entry, or unset DAGSTER_HOME."
        )


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


def _listed(processes: Sequence[liveness.Living]) -> str:
    return ", ".join(map(str, processes))


@main.command()
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


main.add_command(reread)
main.add_command(filters)
