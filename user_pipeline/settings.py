"""Every setting of the platform: read from the environment once, checked, and typed.

Variables that are unset there may be set in the file ``.env`` of the data directory, as the start date of the demo is.

A wrong value raises :class:`SettingsError`, which names the variable, the value (never a password) and what would be
right. Nothing here connects to anything. The module is long because it has one model of all settings, and what is read
from that model.
"""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from user_pipeline.setting_values import (
    Database,
    Location,
    ObjectLimits,
    SecretValueError,
    Webhook,
    hide_password,
    to_address,
    to_command,
    to_database,
    to_expression,
    to_hosts,
    to_kept_days,
    to_key,
    to_location,
    to_names,
    to_queue,
    to_remote,
    to_webhook,
)


class SettingsError(ValueError):
    """Settings have values that cannot be used: a line for each of them.

    Attributes:
        variables: their variables.
    """

    def __init__(self, wrong: Sequence[ErrorDetails], origins: Mapping[str, Path] | None = None) -> None:
        self.variables = tuple(map(_variable, wrong))
        super().__init__("\n".join(_line(error, (origins or {}).get(_variable(error))) for error in wrong))


def _setting(variable: str, default: str, description: str) -> Any:  # noqa: ANN401 - as pydantic's Field
    """A field. Its default is written as in the environment, and read in the same way."""
    return Field(default, validation_alias=variable, description=description)


def _written(pattern: str, expected: str) -> WrapValidator:
    """Accept what matches ``pattern`` and the type accepts: the type alone accepts more, such as ``1_000``."""

    def check(value: str, convert: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
        try:
            if re.fullmatch(pattern, value):
                return convert(value)
        except ValidationError:
            pass
        raise ValueError(expected.format(default=Settings.model_fields[str(info.field_name)].default))

    return WrapValidator(check)


def _not_after_yesterday(day: date) -> date:
    if day > datetime.now(UTC).date() - timedelta(days=1):
        raise ValueError(day)
    return day


_BYTES = r"(?i)\d+(\.\d+)?\s*([KMGT]i?)?B"
_StartDate = Annotated[
    date,
    AfterValidator(_not_after_yesterday),
    _written("[0-9]{4}-[0-9]{2}-[0-9]{2}", "a date not after yesterday (UTC), as YYYY-MM-DD"),
]
_Engine = Annotated[Literal["duckdb", "spark"], BeforeValidator(str.lower), _written(".+", "one of duckdb, spark")]
_Memory = Annotated[
    ByteSize, Field(ge=256 * 10**6), _written(_BYTES, "a size of at least 256MB, such as {default} or 512MiB")
]
_Share = Annotated[float, Field(ge=0, le=1), _written(".+", "a share between 0 and 1, such as {default}")]
_Size = Annotated[ByteSize, Field(ge=1), _written(_BYTES, "a size above 0, such as {default} or 512MiB")]
_Count = Annotated[int, Field(ge=1), _written("[0-9]{1,15}", "a whole number from 1, such as {default}")]
_Seconds = Annotated[int, Field(ge=0), _written("[0-9]{1,7}", "a number of seconds from 0 to 9999999, such as 600")]
_Duration = Annotated[
    int, Field(ge=1), _written("[0-9]{1,7}", "a number of seconds from 1 to 9999999, such as {default}")
]
_FilterInput = Annotated[
    Literal["decompressed", "stored"], BeforeValidator(str.lower), _written(".+", "one of decompressed, stored")
]
_Days = Annotated[int, Field(ge=1), _written("[0-9]{1,4}", "a number of days from 1 to 9999, such as {default}")]


_Expression = Annotated[str | None, BeforeValidator(to_expression)]
_Command = Annotated[str | None, BeforeValidator(to_command)]
_Webhook = Annotated[Webhook | None, BeforeValidator(to_webhook)]


class Settings(BaseSettings):
    """The settings, resolved. The description of each is what docs/settings.md and ``user-pipeline env`` say of it."""

    model_config = SettingsConfigDict(
        frozen=True, case_sensitive=True, enable_decoding=False, hide_input_in_errors=True
    )

    # First, because others are inside it unless they are set.
    data_dir: Path = _setting("USER_PIPELINE_DATA_DIR", "./data", "where everything embedded lives")
    source: Location = _setting(
        "USER_PIPELINE_SOURCE_URL", "", "where the two feed folders are: s3://bucket[/prefix] or a directory"
    )
    lake: Location = _setting("USER_PIPELINE_LAKE_URL", "", "the lake: s3://bucket[/prefix] or a directory")
    staging: Database = _setting("USER_PIPELINE_STAGING_URL", "", "postgresql://… of the staging database")
    analytics: Database = _setting("USER_PIPELINE_ANALYTICS_URL", "", "postgresql://… of the analytics database")
    dagster: Database = _setting("DAGSTER_POSTGRES_URL", "", "postgresql://… of Dagster's own storage")
    start_date: _StartDate = _setting("USER_PIPELINE_START_DATE", "2017-04-01", "the first day")
    engine: _Engine = _setting("USER_PIPELINE_ENGINE", "duckdb", "what runs the transforms: duckdb or spark")
    spark_remote: SecretStr | None = _setting(
        "USER_PIPELINE_SPARK_REMOTE", "", "sc://host:15002[/;token=…], a Spark Connect server; hidden like a password"
    )
    memory_limit: _Memory = _setting(
        "USER_PIPELINE_MEMORY_LIMIT",
        "2GB",
        "what a run works in before it spills to disk; Python and Dagster come on top, 0.5 GB at most",
    )
    scratch_dir: Path = _setting("USER_PIPELINE_SCRATCH_DIR", "", "where it spills, and where files pass through")
    max_reject_share: _Share = _setting(
        "USER_PIPELINE_MAX_REJECT_SHARE", "0.05", "share of rejected lines in an object that gives a warning"
    )
    block_reject_share: _Share = _setting(
        "USER_PIPELINE_BLOCK_REJECT_SHARE",
        "0.5",
        "share of rejected lines among those newly read for a day that keeps the day from flowing on",
    )
    max_object_size: _Size = _setting(
        "USER_PIPELINE_MAX_OBJECT_SIZE", "50GB", "bytes of an object once it is decompressed"
    )
    max_compression_ratio: _Count = _setting(
        "USER_PIPELINE_MAX_COMPRESSION_RATIO", "200", "how many times its stored size that may be, beyond 16 MiB"
    )
    max_object_lines: _Count = _setting("USER_PIPELINE_MAX_OBJECT_LINES", "100000000", "lines of an object")
    max_object_rejects: _Count = _setting("USER_PIPELINE_MAX_OBJECT_REJECTS", "1000000", "rejected lines of an object")
    page_views_filter: _Command = _setting(
        "USER_PIPELINE_PAGE_VIEWS_FILTER", "", "a command each object's bytes are piped through"
    )
    user_updates_filter: _Command = _setting("USER_PIPELINE_USER_UPDATES_FILTER", "", "the same, for the other feed")
    filter_input: _FilterInput = _setting(
        "USER_PIPELINE_FILTER_INPUT", "decompressed", "what a filter gets of an object: decompressed or stored bytes"
    )
    filter_environment: Annotated[tuple[str, ...], BeforeValidator(to_names)] = _setting(
        "USER_PIPELINE_FILTER_ENVIRONMENT",
        "PATH,LANG,TZ",
        "variables a filter gets, separated by commas, beside SOURCE_OBJECT and the key below",
    )
    filter_seconds: _Duration = _setting("USER_PIPELINE_FILTER_SECONDS", "3600", "how long a filter may take an object")
    filter_memory: _Size = _setting(
        "USER_PIPELINE_FILTER_MEMORY", "1GB", "what the processes of a filter may use together"
    )
    user_id_key: Annotated[SecretStr | None, BeforeValidator(to_key)] = _setting(
        "USER_PIPELINE_USER_ID_KEY", "", "the key of the user ids that user-pipeline filter makes; a secret"
    )
    settle_seconds: _Seconds = _setting(
        "USER_PIPELINE_SETTLE_SECONDS", "0", "an object is left alone until it has not changed for so long"
    )
    source_queue_url: str | None = _setting(
        "USER_PIPELINE_SOURCE_QUEUE_URL",
        "",
        "the SQS queue the source bucket tells of new objects; without one it is listed",
    )
    recommendation_days: _Days = _setting(
        "USER_PIPELINE_RECOMMENDATION_DAYS",
        "90",
        "recommendations are learned from the views of this many days, for the users active in them",
    )
    recommendation_min_viewers: _Count = _setting(
        "USER_PIPELINE_RECOMMENDATION_MIN_VIEWERS",
        "3",
        "a page that fewer users have viewed in these days is shown to nobody else",
    )
    recommendation_urls: _Expression = _setting(
        "USER_PIPELINE_RECOMMENDATION_URLS", "", "a regular expression found in every url that may be recommended"
    )
    recommendation_exclude_urls: _Expression = _setting(
        "USER_PIPELINE_RECOMMENDATION_EXCLUDE_URLS", "", "one found in no url that may be recommended"
    )
    retention_days: Annotated[int | None, BeforeValidator(to_kept_days)] = _setting(
        "USER_PIPELINE_RETENTION_DAYS",
        "",
        "rows, rejected lines and identities of days older than this leave lake and staging; the marts keep their sums",
    )
    alert_webhook: _Webhook = _setting(
        "USER_PIPELINE_ALERT_WEBHOOK_URL", "", "where failed runs and checks are posted, as Slack takes it; a secret"
    )
    heartbeat: _Webhook = _setting(
        "USER_PIPELINE_HEARTBEAT_URL", "", "fetched after each successful daily run, a dead man's switch; a secret"
    )
    ui_url: Annotated[str | None, BeforeValidator(to_address)] = _setting(
        "USER_PIPELINE_UI_URL",
        "",
        "the address of the UI where that is not loopback: the web server answers under it, and alerts link to it",
    )
    ui_hosts: Annotated[tuple[str, ...], BeforeValidator(to_hosts)] = _setting(
        "USER_PIPELINE_UI_HOSTS", "", "what else the web server answers as: names and addresses, separated by commas"
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, file: Path | None = None) -> "Settings":
        """Read and check every setting.

        Args:
            environment: variables by name; an empty value counts as unset.
            file: lines ``NAME=value`` for variables that are unset in the environment; it may be missing.

        Raises:
            SettingsError: values cannot be used.
        """
        source = EnvSettingsSource(cls)
        set_here = {name: stripped for name, value in environment.items() if (stripped := value.strip())}
        pinned = {name: value for name, value in _pinned(file).items() if name not in set_here}
        source.env_vars = pinned | set_here
        try:
            return cls(**source())
        except ValidationError as error:
            origins = dict.fromkeys(pinned, file) if file else {}
            raise SettingsError(error.errors(include_url=False), origins) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what :meth:`from_environment` has read: no other environment or file."""
        return (init_settings,)

    @property
    def uses_embedded_postgres(self) -> bool:
        """Whether any database is left to the embedded server."""
        return any(database.url is None for database in (self.staging, self.analytics, self.dagster))

    def without_secrets(self, scratch_dir: Path, memory_limit: int) -> "Settings":
        """These settings for work on another machine, which reaches no database and has credentials of its own.

        Args:
            scratch_dir: the one of that machine.
            memory_limit: bytes, of that machine.
        """
        databases = {name: Database(variable_of(name), name, None) for name in ("staging", "analytics", "dagster")}
        secrets = {name: None for name, value in self if isinstance(value, SecretStr | Webhook)}
        return self.model_copy(
            update={**databases, **secrets, "scratch_dir": scratch_dir, "memory_limit": ByteSize(memory_limit)}
        )

    @property
    def settle_time(self) -> timedelta:
        """How long an object must not have changed before it is read."""
        return timedelta(seconds=self.settle_seconds)

    @property
    def object_limits(self) -> ObjectLimits:
        """What one object of the source may hold."""
        return ObjectLimits(
            self.max_object_size, self.max_compression_ratio, self.max_object_lines, self.max_object_rejects
        )

    @field_validator("data_dir", "scratch_dir", mode="before")
    @classmethod
    def _directory(cls, value: str) -> Path:
        if "://" in value:
            raise ValueError("the path of a directory")
        path = Path(value or tempfile.gettempdir()).expanduser().absolute()
        if path.exists() and not path.is_dir():
            raise ValueError("the path of a directory, and this is a file")
        return path

    @field_validator("source", "lake", mode="before")
    @classmethod
    def _location(cls, value: str, info: ValidationInfo) -> Location:
        name = str(info.field_name)
        if not value:
            # The data directory is missing if it cannot be used itself.
            return Location(variable_of(name), str(info.data.get("data_dir", Path()) / name))
        return to_location(value, variable_of(name))

    @field_validator("staging", "analytics", "dagster", mode="before")
    @classmethod
    def _database(cls, value: str, info: ValidationInfo) -> Database:
        name = str(info.field_name)
        return to_database(value, variable_of(name), name)

    @field_validator("spark_remote", mode="before")
    @classmethod
    def _remote(cls, value: str, info: ValidationInfo) -> SecretStr | None:
        if not value and info.data.get("engine") == "spark":
            raise ValueError(
                f"sc://host:15002, a Spark Connect server, as {variable_of('engine')} is spark; or set that to duckdb"
            )
        return to_remote(value)

    @field_validator("source_queue_url", mode="before")
    @classmethod
    def _queue(cls, value: str, info: ValidationInfo) -> str | None:
        url, source = to_queue(value), info.data.get("source")
        if url and source is not None and not source.is_s3:
            raise ValueError(f"none, as {source.variable} is a directory: only a bucket tells a queue of its objects")
        return url


@cache
def current() -> Settings:
    """The settings of this process, read the first time they are asked for.

    They come from its environment, and what is unset there from the file ``.env`` in the data directory.

    Raises:
        SettingsError: values cannot be used.
    """
    return Settings.from_environment(file=env_file())


def env_file(environment: Mapping[str, str] = os.environ) -> Path:
    """The file ``.env`` in the data directory that the environment names."""
    variable = variable_of("data_dir")
    directory = environment.get(variable, "").strip() or Settings.model_fields["data_dir"].default
    return Path(directory).expanduser().absolute() / ".env"


def variable_of(field: str) -> str:
    """The environment variable that a field of :class:`Settings` is read from."""
    return str(Settings.model_fields[field].validation_alias)


_OF_DEPLOYMENTS = ("USER_PIPELINE_CODE_HOST", "USER_PIPELINE_CODE_PORT", "USER_PIPELINE_TAG")
"""Variables of files below deploy/ that the package does not read."""


def unknown_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str | None]:
    """Variables that look like settings and are none, each with the setting with the most similar name, if any."""
    known = [variable_of(field) for field in Settings.model_fields]
    return {
        name: next(iter(get_close_matches(name, known, 1)), None)
        for name in environment
        if name.startswith("USER_PIPELINE_") and name not in (*known, *_OF_DEPLOYMENTS)
    }


def _variable(wrong: ErrorDetails) -> str:
    """The variable of a value that cannot be used; for a default, pydantic gives the field instead."""
    name = str(wrong["loc"][0])
    return variable_of(name) if name in Settings.model_fields else name


def _line(wrong: ErrorDetails, origin: Path | None) -> str:
    expected = wrong["ctx"]["error"]
    shown = "***" if isinstance(expected, SecretValueError) else hide_password(wrong["input"])
    where = f" in {origin}" if origin else ""
    return f"{_variable(wrong)}={shown!r}{where} cannot be used: expected {expected}."


def _pinned(file: Path | None) -> dict[str, str]:
    """The variables that a file sets, but for the data directory, which the file is in."""
    if file is None or not file.is_file():
        return {}
    from dotenv import dotenv_values

    values = dotenv_values(file, interpolate=False)
    return {
        name: stripped
        for name, value in values.items()
        if (stripped := (value or "").strip()) and name != variable_of("data_dir")
    }
