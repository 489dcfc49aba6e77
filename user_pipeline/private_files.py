"""The files of the platform hold people's data: only the user it runs as may read them."""

import os
from contextlib import suppress
from pathlib import Path
from stat import S_IMODE

from user_pipeline import settings

_OURS = frozenset({"source", "lake", "postgres", "dagster", "demo.log", ".env"})
"""What the platform keeps in USER_PIPELINE_DATA_DIR."""


def keep_private() -> None:
    """Make what this process and its children write readable for their user alone, and close the data directory.

    Every entry point calls it before anything is written. A data directory that holds other things too, such as
    ``/srv``, stays as it is; what is ours in it is closed.

    Raises:
        SettingsError: a setting cannot be used.
    """
    os.umask(0o077)
    data_dir = settings.current().data_dir
    try:
        names = {path.name for path in data_dir.iterdir()}
    except OSError:
        return  # it is not there yet, or another user's
    for path in [data_dir] if names <= _OURS else [data_dir / name for name in names & _OURS]:
        close(path)


def close(path: Path) -> None:
    """Take from everyone else what they may do with a file or directory of ours."""
    # It went in the meantime, or the file system has no permissions or cannot be written to.
    with suppress(OSError):
        status = path.stat()
        if status.st_uid == os.geteuid() and status.st_mode & 0o077:
            path.chmod(S_IMODE(status.st_mode) & ~0o077)
