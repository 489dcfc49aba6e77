"""The tables of the object manifest: made if they are missing, and filled again from the logs of the lake."""

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from user_pipeline.ingest import drift, manifest_log
from user_pipeline.ingest.retirement import create_retirement
from user_pipeline.ingest.suppression import create_suppression

if TYPE_CHECKING:
    from user_pipeline.resources.postgres import Transaction

_TABLES = (
    "ingested_objects",
    "ingested_objects_unread",
    "ingested_objects_rejects",
    "ingested_objects_unaccounted",
    "ingested_days",
    "ingested_days_day",
    "ingested_days_version",
    "replaced_files",
    "announced_objects",
    "listings",
    "further_fields",
    "accepted_days",
)
_SCHEMA = "pipeline"


def create_manifest(transaction: "Transaction") -> None:
    """Make the tables of the manifest unless they are there; those of the registry come first."""
    script = files(__package__).joinpath("create_manifest.sql")
    transaction.make_missing(_TABLES, lambda: transaction.execute(script.read_text(encoding="utf-8")), _SCHEMA)
    create_suppression(transaction)
    create_retirement(transaction)


def restore_manifest(transaction: "Transaction", lines: Iterator[Mapping[str, Any]]) -> None:
    """Bring the lines of a log into the manifest, which is made if it is missing."""
    create_manifest(transaction)
    manifest_log.restore_lines(transaction, drift.restore_fields(transaction, lines))
