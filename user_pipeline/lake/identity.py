"""Which lake this is, and which format it has: the object ``format.json`` at its root.

Each database notes the lake it belongs to. So a database that belongs to another lake, or a lake or database of another
format, is refused before anything is written.
"""

import json
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from user_pipeline.errors import PermanentError

if TYPE_CHECKING:
    from user_pipeline.resources.storage import ObjectStorage

FORMAT = 2
"""The format of the lake, its logs, and the tables of registry and manifest. Version 0.1.0 had format 1."""
_PATH = "format.json"
_FIRST = "catalog"


class FormatError(PermanentError):
    """A lake or a database is of a format that this version of the package cannot use."""

    def __init__(self, what: str, found: object) -> None:
        newer = isinstance(found, int) and found > FORMAT
        advice = (
            "A newer version of user_pipeline wrote it: install that version."
            if newer
            else "An older version of user_pipeline wrote it: use that version, or begin with an empty lake and empty "
            "databases; all tables come back from the source."
        )
        super().__init__(f"{what} has format {found}, and this version of user_pipeline has format {FORMAT}. {advice}")


class OtherLakeError(PermanentError):
    """A database belongs to another lake than the one that is set."""


@dataclass(frozen=True, slots=True)
class LakeIdentity:
    """What ``format.json`` says.

    Attributes:
        lake_id: tells this lake from any other.
        format: the format of its files and logs.
    """

    lake_id: str
    format: int


def read_identity(storage: "ObjectStorage") -> LakeIdentity | None:
    """The identity of the lake; None for a lake that nothing was written to.

    Raises:
        FormatError: this version of the package cannot use it.
    """
    where = storage.lake_url(_PATH)
    try:
        content = bytes(storage.lake.get(_PATH).bytes())
    except FileNotFoundError:
        # Format 1 had no such object, but a folder with a catalog of what was read.
        if any(True for page in storage.lake.list(_FIRST, chunk_size=1) for _ in page):
            raise FormatError(storage.lake_url(_FIRST), 1) from None
        return None
    try:
        found = json.loads(content)
        identity = LakeIdentity(str(found["lake_id"]), int(found["format"]))
    except (ValueError, KeyError, TypeError):
        raise FormatError(where, content[:40].decode(errors="replace")) from None
    if identity.format != FORMAT:
        raise FormatError(where, identity.format)
    return identity


def ensure_identity(storage: "ObjectStorage") -> LakeIdentity:
    """The identity of the lake, which gets one if it has none yet.

    Raises:
        FormatError: this version of the package cannot use it.
    """
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    if found := read_identity(storage):
        return found
    made = LakeIdentity(uuid.uuid4().hex, FORMAT)
    try:
        storage.lake.put(_PATH, json.dumps(asdict(made)).encode(), mode="create")
    except (AlreadyExistsError, PreconditionError):
        # Another process was quicker.
        return ensure_identity(storage)
    return made
