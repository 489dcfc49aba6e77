"""What is delivered and not kept: lines of people who were forgotten, and rows of days past their retention."""

from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

from user_pipeline.ingest.retirement import PAST_RETENTION, kept_from
from user_pipeline.ingest.suppression import SUPPRESSED, Suppression, named_user

if TYPE_CHECKING:
    import duckdb

    from user_pipeline.ingest.feeds import Feed
    from user_pipeline.lake.registry import Registry

_AT_ONCE = 100_000


@dataclass(frozen=True, slots=True)
class Withheld:
    """What of newly read lines is not kept.

    Attributes:
        suppression: whose lines; None if nobody was forgotten.
        kept_from: the first day whose rows are kept; None for all.
    """

    suppression: Suppression | None
    kept_from: date | None

    @classmethod
    def of(cls, registry: "Registry") -> "Withheld":
        """What the staging database knows of it."""
        return cls(Suppression.of(registry), kept_from(registry))

    def reject(self, connection: "duckdb.DuckDBPyConnection", feed: "Feed") -> None:
        """Reject such lines of the table ``parsed``, which :meth:`.Feed.parse_sql` gives, and take their text out."""
        if self.suppression:
            user = f"coalesce(user_id, {named_user(feed, 'text')})"
            self._note_suppressed(connection, user)
            connection.execute(
                f"update parsed set reason = '{SUPPRESSED}', text = '', rescued = null "
                f"where reason is distinct from 'header' and {user} in (select user_id from suppressed)"
            )
            connection.execute("drop table suppressed")
        if self.kept_from:
            connection.execute(
                f"update parsed set reason = '{PAST_RETENTION}', text = '', rescued = null "
                f"where reason is null and {feed.event_time} < '{self.kept_from}'"
            )

    def _note_suppressed(self, connection: "duckdb.DuckDBPyConnection", user: str) -> None:
        """Fill the temporary table ``suppressed`` with the users of ``parsed`` who are on the list."""
        connection.execute("create temp table suppressed (user_id bigint)")
        users = connection.execute(
            f"select distinct {user} as user_id from parsed where {user} is not null"
        ).to_arrow_reader(_AT_ONCE)
        found = [
            user_id
            for batch in users
            for user_id in batch.column(0).to_pylist()
            if self.suppression is not None and user_id in self.suppression
        ]
        connection.execute("insert into suppressed select unnest($found::bigint[])", {"found": found})
