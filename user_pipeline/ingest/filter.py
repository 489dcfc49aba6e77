"""A command through which the bytes of each object go before they are cut into lines.

What such a command makes of an object is as much part of what was read as the object: so its text and its version are
kept with the entry in the manifest.
"""

import hashlib
import hmac
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from user_pipeline.errors import PermanentError
from user_pipeline.ingest.compression import Blocks, open_decompressed, open_stored
from user_pipeline.ingest.filter_process import FilterProcess
from user_pipeline.ingest.filter_session import NotStartedError
from user_pipeline.setting_values import ObjectLimits
from user_pipeline.settings import Settings, variable_of

if TYPE_CHECKING:
    from user_pipeline.ingest.feeds import Feed

_OURS = "user-pipeline"
"""The program that tells its own version: the file that starts it never changes."""
_HARMLESS = ("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "USER", "LOGNAME", "SHELL", "TMPDIR")
"""Variables whose values are not secret. The values of all others that a filter gets are masked."""
_SHORTEST_SECRET = 4


class FilterError(PermanentError):
    """A filter cannot be started: nothing of the feed is read until the setting or the program is put right."""


@dataclass(frozen=True, slots=True)
class ReadWith:
    """What an object is read with.

    Attributes:
        filter: the command as it is set; None without one.
        filter_version: a digest of its files and of how it is used; None without a filter.
    """

    filter: str | None = None
    filter_version: str | None = None


UNFILTERED = ReadWith()


@dataclass(frozen=True)
class Filter:
    """A command that bytes are piped through.

    Attributes:
        variable: the setting it came from, named in every error about it.
        command: the program and its arguments, quoted as for a shell.
        as_stored: whether it gets the bytes as they are stored, rather than decompressed.
        environment: all variables it gets but ``SOURCE_OBJECT``.
        seconds: how long it may take for an object.
        memory: bytes that its processes may use together, and each of them alone.
        key: the key of the ids of users, if one is set: with another one, an object brings other rows.
    """

    variable: str
    command: str
    as_stored: bool = False
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    seconds: int = 3600
    memory: int = 10**9
    key: str = field(default="", repr=False)

    @classmethod
    def of(cls, feed: "Feed", settings: Settings, environment: Mapping[str, str] = os.environ) -> "Filter | None":
        """The filter of a feed, if one is set.

        Args:
            feed: the feed.
            settings: name the command, and the variables it gets.
            environment: has their values.
        """
        name = f"{feed.name}_filter"
        command: str | None = getattr(settings, name)
        if command is None:
            return None
        given = {name: environment[name] for name in settings.filter_environment if name in environment}
        key = settings.user_id_key.get_secret_value() if settings.user_id_key else ""
        if key:
            given[variable_of("user_id_key")] = key
        return cls(
            variable_of(name),
            command,
            as_stored=settings.filter_input == "stored",
            environment=given,
            seconds=settings.filter_seconds,
            memory=settings.filter_memory,
            key=key,
        )

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The program and its arguments."""
        return tuple(shlex.split(self.command))

    @cached_property
    def program(self) -> str:
        """Where the program is.

        Raises:
            FilterError: it is nowhere, or cannot be executed.
        """
        found = shutil.which(self.words[0], path=self.environment.get("PATH", os.defpath))
        if found is None and self.words[0] == _OURS:
            # Dagster may have been started without activating the environment.
            found = shutil.which(Path(sys.executable).with_name(_OURS))
        if found is not None:
            return str(Path(found).absolute())
        path = Path(self.words[0])
        if path.is_dir():
            raise self._error("it is a directory")
        if len(path.parts) > 1 and path.exists():
            raise self._error(f"the pipeline may not execute it: chmod +x {shlex.quote(self.words[0])}")
        where = "" if len(path.parts) > 1 else f" in PATH={self.environment.get('PATH', os.defpath)}"
        raise self._error(f"there is no such program{where}")

    def _error(self, problem: str) -> FilterError:
        return FilterError(
            f"{self.variable}={self.command!r}: {self.words[0]!r} cannot be started: {problem}. Put it right, or unset "
            "the variable; nothing was read, and what is new waits."
        )

    @property
    def read_with(self) -> ReadWith:
        """The filter and its version as of now: its files may be replaced at any time."""
        version = hashlib.sha256(b"stored" if self.as_stored else b"")
        if self.key:
            version.update(hmac.digest(self.key.encode(), b"version", "sha256"))
        with suppress(FilterError):
            version.update(_digest(Path(self.program)))
            if Path(self.program).name == _OURS:
                from user_pipeline.access_logs import version as version_of_ours

                version.update(version_of_ours().encode())
        for word in self.words[1:]:
            version.update(_digest(Path(word)))
        return ReadWith(self.command, version.hexdigest()[:16])

    def open(
        self, chunks: Iterable[bytes | memoryview], name: str, *, stored_bytes: int, limits: ObjectLimits
    ) -> FilterProcess:
        """What the filter makes of an object, as a stream; the caller closes it.

        Args:
            chunks: the bytes of the object as stored.
            name: its name, which the filter gets as ``SOURCE_OBJECT``.
            stored_bytes: how large it is as stored.
            limits: what it may become before the filter gets it.

        Raises:
            FilterError: the filter cannot be started.
            BrokenObjectError: the object cannot be decompressed; the stream raises it as well.
        """
        content = open_stored(chunks) if self.as_stored else open_decompressed(chunks, name)
        try:
            return FilterProcess(
                [self.program, *self.words[1:]],
                Blocks(content, stored_bytes, limits),
                {**self.environment, "SOURCE_OBJECT": name},
                seconds=self.seconds,
                memory=self.memory,
                secrets=[
                    value
                    for variable, value in self.environment.items()
                    if not variable.startswith("LC_") and variable not in _HARMLESS and len(value) >= _SHORTEST_SECRET
                ],
            )
        except NotStartedError as error:
            raise self._error(str(error)) from error


def read_with(chosen: Filter | None) -> ReadWith:
    """What an object is read with by a filter, or without one."""
    return chosen.read_with if chosen else UNFILTERED


def _digest(path: Path) -> bytes:
    """The digest of a file; empty if it is none, as most arguments are."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, ValueError):
        return b""
