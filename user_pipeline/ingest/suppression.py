"""People who asked to be forgotten: their lines are rejected without their text, however often they are delivered.

The list holds no ids. It has the HMAC-SHA256 of each id (its decimal digits) under a random key of 32 bytes, which the
staging database makes when the first person is forgotten. Key and digests are in the tables
``pipeline.suppression_key`` and ``pipeline.suppressed_users`` of that database, and in the logs of the lake, from which
they come back. Ids are numbers and can be tried one by one: with key and list one can tell who is on it.
"""

import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from secrets import token_bytes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from user_pipeline.ingest.feeds import Feed
    from user_pipeline.lake.registry import Registry
    from user_pipeline.resources.postgres import Transaction

SUPPRESSED = "suppressed_user"
"""Why the lines of such a person are rejected."""
KEY, DIGEST = "suppression_key", "suppressed"
"""Kinds of lines in logs."""
_TABLES = ("suppression_key", "suppressed_users")
_CREATE = """
do $$
begin
  create table pipeline.suppression_key (
    key bytea not null,
    is_only_row boolean primary key default true check (is_only_row)
  );
  -- The digest of each id, and the commit that put it there.
  create table pipeline.suppressed_users (digest bytea primary key, version bigint not null);
end
$$
"""
# The id that a rejected line gives, where it gives one. Of a line that is no record it is what stands in its place.
_NAMED = {
    "page_views": r"""coalesce(
      try_cast(regexp_extract(try(json_extract_string({text}, '$.user_id')), '^\d+$') as bigint),
      try_cast(regexp_extract({text}, '"user_id"\s*:\s*"?(\d+)', 1) as bigint))""",
    "user_updates": r"""try_cast(regexp_extract(
      {text}, '^\s*(?:"(?:[^"]|"")*"|[^",\r\n]*)\s*,\s*"?\s*(\d+)\s*"?\s*(?:,|$)', 1) as bigint)""",
}


@dataclass(frozen=True, slots=True)
class Suppression:
    """Whose lines are rejected.

    Attributes:
        key: of the digests.
        digests: those of the ids.
    """

    key: bytes
    digests: frozenset[bytes]

    def __contains__(self, user_id: int) -> bool:
        """Whether a user is on the list."""
        return digest(self.key, user_id) in self.digests

    @classmethod
    def of(cls, registry: "Registry") -> "Suppression | None":
        """What the staging database knows; None if nobody was forgotten."""
        registry.open()
        with registry.database.transaction() as transaction:
            create_suppression(transaction)
            keys = transaction.fetch("select encode(key, 'hex') from pipeline.suppression_key")
            digests = transaction.fetch("select encode(digest, 'hex') from pipeline.suppressed_users")
        if not keys or not digests:
            return None
        return cls(bytes.fromhex(keys[0][0]), frozenset(bytes.fromhex(found) for (found,) in digests))


def digest(key: bytes, user_id: int) -> bytes:
    """What the list holds in the place of an id."""
    return hmac.digest(key, str(user_id).encode(), "sha256")


def named_user(feed: "Feed", text: str) -> str:
    """The SQL of the engine that gives the user id in the text of a rejected line; null where there is none.

    Args:
        feed: whose line it is.
        text: the SQL of the text.
    """
    return _NAMED[feed.name].format(text=text)


def create_suppression(transaction: "Transaction") -> None:
    """Make the tables unless they are there; those of the registry come first."""
    transaction.make_missing(_TABLES, lambda: transaction.execute(_CREATE), "pipeline")


def suppress(transaction: "Transaction", user_ids: Iterable[int], version: int) -> list[dict[str, Any]]:
    """Put users on the list; those who are on it stay.

    Args:
        transaction: on the staging database, within a commit.
        user_ids: who.
        version: of the commit.

    Returns:
        the lines of the log that tell of it; none if all were on the list.
    """
    create_suppression(transaction)
    transaction.execute(
        f"insert into pipeline.suppression_key (key) values ({_bytes(token_bytes(32))}) on conflict do nothing"
    )
    [(key,)] = transaction.fetch("select encode(key, 'hex') from pipeline.suppression_key")
    for user_id in user_ids:
        transaction.execute(
            "insert into pipeline.suppressed_users (digest, version) "
            f"values ({_bytes(digest(bytes.fromhex(key), user_id))}, {version}) on conflict do nothing"
        )
    return suppression_lines(transaction, f"version = {version}")


def suppression_lines(transaction: "Transaction", condition: str = "true") -> list[dict[str, Any]]:
    """Lines of a log that tell of the key and of the digests for which a condition holds; none without digests."""
    found = transaction.fetch(
        f"select encode(digest, 'hex'), version from pipeline.suppressed_users where {condition} order by 1"
    )
    if not found:
        return []
    [(key,)] = transaction.fetch("select encode(key, 'hex') from pipeline.suppression_key")
    return [{"kind": KEY, "key": key}, *({"kind": DIGEST, "digest": of, "version": version} for of, version in found)]


def restore_suppression(transaction: "Transaction", lines: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Bring back the list that lines of a log tell of; the other lines are passed on."""
    for line in lines:
        if line["kind"] == KEY:
            transaction.execute(
                f"insert into pipeline.suppression_key (key) values ({_bytes(bytes.fromhex(line['key']))}) "
                "on conflict do nothing"
            )
        elif line["kind"] == DIGEST:
            transaction.execute(
                "insert into pipeline.suppressed_users (digest, version) "
                f"values ({_bytes(bytes.fromhex(line['digest']))}, {int(line['version'])}) on conflict do nothing"
            )
        else:
            yield line


def _bytes(value: bytes) -> str:
    return f"'\\x{value.hex()}'::bytea"
