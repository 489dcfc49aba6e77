"""``user-pipeline filter``: filters that come with the platform. They read stdin and need no database."""

import os
import re
import signal
from contextlib import suppress

import click

from user_pipeline.setting_values import SHORTEST_KEY
from user_pipeline.settings import variable_of

_KEY = variable_of("user_id_key")
_PIECE = 2**20


@click.group("filter")
def filters() -> None:
    """Filters for USER_PIPELINE_PAGE_VIEWS_FILTER: stdin to stdout, counts on stderr."""


@filters.command()
@click.option(
    "--user-from",
    type=click.Choice(["ip", "cookie", "remote_user"]),
    default="ip",
    show_default=True,
    help="What tells one user from another.",
)
@click.option("--cookie", metavar="NAME", default="", help="The cookie, for --user-from cookie.")
@click.option(
    "--format",
    "log_format",
    metavar="FORMAT",
    help="As in log_format of nginx or LogFormat of Apache.  [default: combined, or common]",
)
@click.option("--status", "statuses", multiple=True, metavar="CODE", default=("200", "304"), show_default=True)
@click.option("--method", "methods", multiple=True, metavar="NAME", default=("GET",), show_default=True)
@click.option("--only", metavar="REGEX", default="", help="Only paths it is found in.")
@click.option("--exclude", metavar="REGEX", help="No paths it is found in; empty for none.  [default: assets]")
@click.option("--query", type=click.Choice(["cut", "keep"]), default="cut", show_default=True, help="Of query strings.")
@click.option("--bots", type=click.Choice(["drop", "keep"]), default="drop", show_default=True)
@click.option(
    "--anonymous",
    type=click.Choice(["reject", "drop"]),
    default="reject",
    show_default=True,
    help="What becomes of a page request without a user.",
)
@click.option("--environment", default="production", show_default=True)
def access_log(
    *,
    user_from: str,
    cookie: str,
    log_format: str | None,
    statuses: tuple[str, ...],
    methods: tuple[str, ...],
    only: str,
    exclude: str | None,
    query: str,
    bots: str,
    anonymous: str,
    environment: str,
) -> None:
    """Make page views of an access log of Apache or nginx.

    \b
      export USER_PIPELINE_USER_ID_KEY=$(openssl rand -hex 32)
      user-pipeline filter access-log </var/log/nginx/access.log

    Counted are requests for pages that were answered, by people. A user is the digest of an address, a cookie or a name
    in 63 bits, with the key USER_PIPELINE_USER_ID_KEY: the same key gives the same users, and without it nobody finds
    out which address one is.

    What is no line of the format goes through as it is, and the pipeline rejects and keeps it. What the rules leave out
    is counted on stderr.
    """
    from user_pipeline.access_logs.formats import FormatError
    from user_pipeline.access_logs.views import ASSETS, LONGEST_LINE, Converter, Rules

    if (user_from == "cookie") != bool(cookie):
        raise click.UsageError("--user-from cookie goes with --cookie NAME, and with nothing else.")
    key = os.environ.get(_KEY, "").strip()
    if len(key) < SHORTEST_KEY:
        raise click.ClickException(
            f"{_KEY} has to hold a secret of at least {SHORTEST_KEY} characters, which ids of users are made with: "
            f"export {_KEY}=$(openssl rand -hex 32)"
        )
    rules = Rules(
        key=key.encode(),
        user_from=user_from,
        cookie=cookie,
        format=log_format,
        environment=environment,
        statuses=frozenset(statuses),
        methods=frozenset(methods),
        only=only,
        exclude=ASSETS if exclude is None else exclude,
        keep_query=query == "keep",
        keep_bots=bots == "keep",
        drop_anonymous=anonymous == "drop",
    )
    try:
        converter = Converter(rules)
    except re.error as error:
        raise click.UsageError(f"--only and --exclude want regular expressions: {error}") from error
    except FormatError as error:
        raise click.UsageError(f"--format: {error}") from error
    # The program that reads the output may stop reading.
    with suppress(AttributeError):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    with open(0, "rb", _PIECE, closefd=False) as lines, open(1, "wb", _PIECE, closefd=False) as output:
        output.writelines(converter.convert(iter(lambda: lines.readline(LONGEST_LINE), b"")))
    told = ", ".join(f"{what} {count:,}" for what, count in sorted(converter.counts.items()))
    click.echo(f"access-log: {sum(converter.counts.values()):,} lines: {told or 'nothing'}", err=True)
