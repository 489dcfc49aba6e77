import pickle
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from user_pipeline.masking import mask
from user_pipeline.setting_values import ObjectLimits, hide_password
from user_pipeline.settings import Settings, SettingsError, env_file, variable_of

SECRET = "hunter2"  # noqa: S105 - it must not be shown
DATABASES = ("USER_PIPELINE_STAGING_URL", "USER_PIPELINE_ANALYTICS_URL", "DAGSTER_POSTGRES_URL")
FILTERS = ("USER_PIPELINE_PAGE_VIEWS_FILTER", "USER_PIPELINE_USER_UPDATES_FILTER")
LOCATIONS = ("USER_PIPELINE_SOURCE_URL", "USER_PIPELINE_LAKE_URL")


def read(**environment: str) -> Settings:
    return Settings.from_environment(environment)


def test_an_empty_environment_works_on_a_laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read()
    assert settings.data_dir == tmp_path / "data"
    assert settings.source.url == str(tmp_path / "data" / "source")
    assert settings.lake.url == str(tmp_path / "data" / "lake")
    assert settings.uses_embedded_postgres
    assert (settings.staging.name, settings.analytics.name, settings.dagster.name) == (
        "staging",
        "analytics",
        "dagster",
    )
    assert settings.start_date == date(2017, 4, 1)
    assert settings.engine == "duckdb"
    assert settings.memory_limit == 2 * 10**9
    assert settings.max_reject_share == 0.05
    assert settings.settle_seconds == 0
    assert (settings.page_views_filter, settings.user_updates_filter, settings.user_id_key) == (None, None, None)
    assert (settings.filter_input, settings.filter_environment) == ("decompressed", ("PATH", "LANG", "TZ"))
    assert (settings.filter_seconds, settings.filter_memory) == (3600, 10**9)
    assert settings.recommendation_days == 90
    assert settings.recommendation_min_viewers == 3
    assert (settings.recommendation_urls, settings.recommendation_exclude_urls) == (None, None)
    assert settings.object_limits == ObjectLimits(size=50 * 10**9, ratio=200, lines=100_000_000, rejects=1_000_000)


def test_a_filter_is_kept_as_it_is_written_and_may_get_any_variable_that_is_not_ours() -> None:
    command = """sh -c 'jq -c .view | grep -v "a b"'"""
    settings = read(
        USER_PIPELINE_PAGE_VIEWS_FILTER=command,
        USER_PIPELINE_FILTER_ENVIRONMENT=" PATH, LC_ALL,,jvm_opts",
        USER_PIPELINE_FILTER_INPUT="Stored",
    )
    assert settings.page_views_filter == command
    assert settings.filter_environment == ("PATH", "LC_ALL", "jvm_opts")
    assert settings.filter_input == "stored"


def test_the_key_of_user_ids_is_long_and_never_shown() -> None:
    settings = read(USER_PIPELINE_USER_ID_KEY=SECRET * 3)
    assert settings.user_id_key is not None
    assert settings.user_id_key.get_secret_value() == SECRET * 3
    assert SECRET not in repr(settings) + repr(settings.model_dump()) + settings.model_dump_json()
    assert mask(f"x {SECRET * 3} y", settings) == "x *** y"
    with pytest.raises(SettingsError, match=r"USER_PIPELINE_USER_ID_KEY='[*]{3}' .* at least 16 characters") as error:
        read(USER_PIPELINE_USER_ID_KEY=SECRET)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("parameter", ["use_ssl=true;token=", "authorization=Bearer%20", "Authorization="])
def test_the_address_of_spark_is_never_shown_nor_its_token(parameter: str) -> None:
    remote = f"sc://spark.example.com:15002/;{parameter}{SECRET}"
    settings = read(USER_PIPELINE_ENGINE="Spark", USER_PIPELINE_SPARK_REMOTE=remote)
    assert settings.engine == "spark"
    assert settings.spark_remote is not None
    assert settings.spark_remote.get_secret_value() == remote
    assert SECRET not in repr(settings) + repr(settings.model_dump()) + settings.model_dump_json()
    assert mask(f"{remote} {SECRET}", settings) == "*** ***"


@pytest.mark.parametrize(
    "wrong",
    [
        f"http://spark/;token={SECRET}",
        "spark://host:7077",
        "sc://",
        f"sc://me:{SECRET}@host:15002",
        "sc://host:many",
        f"sc://host:15002/{SECRET}",
        f"sc://host:15002?token={SECRET}",
    ],
)
def test_a_wrong_address_of_spark_is_not_shown_either(wrong: str) -> None:
    with pytest.raises(SettingsError, match=r"USER_PIPELINE_SPARK_REMOTE='[*]{3}' .* sc://host:15002") as error:
        read(USER_PIPELINE_SPARK_REMOTE=wrong)
    assert SECRET not in str(error.value)


def test_spark_needs_an_address() -> None:
    with pytest.raises(SettingsError, match=r"USER_PIPELINE_SPARK_REMOTE='' .* as USER_PIPELINE_ENGINE is spark"):
        read(USER_PIPELINE_ENGINE="spark")


def test_what_goes_to_executors_holds_no_secret(tmp_path: Path) -> None:
    secrets = {
        **dict.fromkeys(DATABASES, f"postgresql://me:{SECRET}@host/x"),
        "USER_PIPELINE_SPARK_REMOTE": f"sc://spark/;token={SECRET}",
        "USER_PIPELINE_USER_ID_KEY": SECRET * 3,
        "USER_PIPELINE_ALERT_WEBHOOK_URL": f"https://host/{SECRET}",
        "USER_PIPELINE_HEARTBEAT_URL": f"https://host/{SECRET}",
    }
    sent = read(USER_PIPELINE_LAKE_URL="s3://lake", **secrets).without_secrets(tmp_path, 10**9)
    assert SECRET.encode() not in pickle.dumps(sent)
    assert pickle.loads(pickle.dumps(sent)) == sent  # noqa: S301 - of our own
    assert (sent.lake.url, sent.scratch_dir, sent.memory_limit) == ("s3://lake", tmp_path, 10**9)


def test_an_object_may_be_left_to_settle() -> None:
    assert read(USER_PIPELINE_SETTLE_SECONDS="600").settle_time == timedelta(minutes=10)


def test_a_bucket_may_tell_a_queue_of_its_objects() -> None:
    queue = "https://sqs.eu-west-1.amazonaws.com/123456789012/logs"
    assert read(USER_PIPELINE_SOURCE_URL="s3://logs", USER_PIPELINE_SOURCE_QUEUE_URL=queue).source_queue_url == queue
    assert read().source_queue_url is None


def test_rules_about_urls_are_kept_as_they_are_written() -> None:
    settings = Settings.from_environment(
        {
            "USER_PIPELINE_RECOMMENDATION_URLS": r"^/(products|blog)/",
            "USER_PIPELINE_RECOMMENDATION_EXCLUDE_URLS": r"[?&]token=|/cart/",
        }
    )
    assert settings.recommendation_urls == r"^/(products|blog)/"
    assert settings.recommendation_exclude_urls == r"[?&]token=|/cart/"


def test_an_empty_value_counts_as_unset() -> None:
    names = (*DATABASES, *LOCATIONS, "USER_PIPELINE_START_DATE", "USER_PIPELINE_MEMORY_LIMIT")
    assert Settings.from_environment(dict.fromkeys(names, " ")) == read()


def test_source_and_lake_follow_the_data_directory(tmp_path: Path) -> None:
    settings = read(USER_PIPELINE_DATA_DIR=str(tmp_path / "elsewhere"))
    assert settings.source.url == str(tmp_path / "elsewhere" / "source")
    assert settings.lake.url == str(tmp_path / "elsewhere" / "lake")


@pytest.mark.parametrize(
    ("given", "url"), [("s3://my-logs", "s3://my-logs"), ("s3://my-logs/a/b/", "s3://my-logs/a/b")]
)
def test_a_bucket_may_have_a_prefix(given: str, url: str) -> None:
    source = read(USER_PIPELINE_SOURCE_URL=given).source
    assert source.is_s3
    assert source.url == url


@pytest.mark.parametrize("variable", DATABASES)
def test_a_database_url_is_kept_and_shown_without_its_password(variable: str) -> None:
    settings = Settings.from_environment({variable: f"postgres://me:{SECRET}@host/x?sslmode=require"})
    (database,) = [d for d in (settings.staging, settings.analytics, settings.dagster) if d.url]
    assert database.variable == variable
    assert database.url
    assert database.url.get_secret_value() == f"postgresql://me:{SECRET}@host/x?sslmode=require"
    assert SECRET not in repr(settings) + repr(settings.model_dump()) + settings.model_dump_json()


def test_embedded_postgres_is_needed_until_every_database_is_configured() -> None:
    given = dict.fromkeys(DATABASES, "postgresql://host/x")
    assert not Settings.from_environment(given).uses_embedded_postgres
    del given["DAGSTER_POSTGRES_URL"]
    assert Settings.from_environment(given).uses_embedded_postgres


@pytest.mark.parametrize(
    ("variable", "value", "expectation"),
    [
        *((location, "s3://", "valid bucket name") for location in LOCATIONS),
        *((location, "s3://Under_Score", "valid bucket name") for location in LOCATIONS),
        *((location, "gs://bucket", "the path of a directory") for location in LOCATIONS),
        *((location, "https://me@host/logs", "the path of a directory") for location in LOCATIONS),
        *((database, "mysql://host/x", "postgresql://") for database in DATABASES),
        *((database, "postgresql://host", "postgresql://") for database in DATABASES),
        ("USER_PIPELINE_DATA_DIR", "s3://bucket/data", "the path of a directory"),
        ("USER_PIPELINE_DATA_DIR", __file__, "this is a file"),
        ("USER_PIPELINE_SCRATCH_DIR", "file:///tmp", "the path of a directory"),
        ("USER_PIPELINE_SCRATCH_DIR", __file__, "this is a file"),
        ("USER_PIPELINE_START_DATE", "2017-4-1", "YYYY-MM-DD"),
        ("USER_PIPELINE_START_DATE", "2017-02-30", "YYYY-MM-DD"),
        ("USER_PIPELINE_START_DATE", "yesterday", "YYYY-MM-DD"),
        ("USER_PIPELINE_START_DATE", datetime.now(UTC).date().isoformat(), "not after yesterday"),
        ("USER_PIPELINE_START_DATE", "2999-01-01", "not after yesterday"),
        ("USER_PIPELINE_ENGINE", "abacus", "one of duckdb, spark"),
        ("USER_PIPELINE_MEMORY_LIMIT", "lots", "such as 2GB"),
        ("USER_PIPELINE_MEMORY_LIMIT", "2", "such as 2GB"),
        ("USER_PIPELINE_MEMORY_LIMIT", "-2GB", "such as 2GB"),
        ("USER_PIPELINE_MEMORY_LIMIT", "1MB", "at least 256MB"),
        ("USER_PIPELINE_MAX_REJECT_SHARE", "5%", "between 0 and 1"),
        ("USER_PIPELINE_MAX_REJECT_SHARE", "1.5", "between 0 and 1"),
        ("USER_PIPELINE_MAX_REJECT_SHARE", "-0.1", "between 0 and 1"),
        ("USER_PIPELINE_MAX_REJECT_SHARE", "nan", "between 0 and 1"),
        *((feed, "'cat", "quoted as for a shell (No closing quotation)") for feed in FILTERS),
        *((feed, "'' x", "a program and its arguments") for feed in FILTERS),
        *((feed, "cat\\", "(No escaped character)") for feed in FILTERS),
        ("USER_PIPELINE_FILTER_INPUT", "gzip", "one of decompressed, stored"),
        ("USER_PIPELINE_FILTER_ENVIRONMENT", "PATH,a b", "names of variables, separated by commas"),
        ("USER_PIPELINE_FILTER_ENVIRONMENT", "PATH=/bin", "names of variables, separated by commas"),
        ("USER_PIPELINE_FILTER_ENVIRONMENT", "AWS_PROFILE", "do not begin with USER_PIPELINE_, DAGSTER_, AWS_, PG"),
        ("USER_PIPELINE_FILTER_ENVIRONMENT", "PATH,USER_PIPELINE_STAGING_URL", "those are the pipeline's alone"),
        ("USER_PIPELINE_FILTER_ENVIRONMENT", "DAGSTER_POSTGRES_URL", "those are the pipeline's alone"),
        ("USER_PIPELINE_FILTER_ENVIRONMENT", "pgpassword", "those are the pipeline's alone"),
        ("USER_PIPELINE_FILTER_SECONDS", "0", "from 1 to 9999999, such as 3600"),
        ("USER_PIPELINE_FILTER_MEMORY", "1", "a size above 0, such as 1GB"),
        ("USER_PIPELINE_BLOCK_REJECT_SHARE", "50%", "between 0 and 1"),
        ("USER_PIPELINE_SETTLE_SECONDS", "-1", "from 0 to 9999999, such as 600"),
        ("USER_PIPELINE_SETTLE_SECONDS", "10m", "from 0 to 9999999, such as 600"),
        ("USER_PIPELINE_SOURCE_QUEUE_URL", "arn:aws:sqs:eu-west-1:123456789012:logs", "the URL of an SQS queue"),
        ("USER_PIPELINE_SOURCE_QUEUE_URL", "https://sqs.eu-west-1.amazonaws.com", "the URL of an SQS queue"),
        ("USER_PIPELINE_SOURCE_QUEUE_URL", "https://sqs.eu-west-1.amazonaws.com/1/q?x=1", "the URL of an SQS queue"),
        (
            "USER_PIPELINE_SOURCE_QUEUE_URL",
            "https://sqs.eu-west-1.amazonaws.com/1/q",
            "none, as USER_PIPELINE_SOURCE_URL",
        ),
        ("USER_PIPELINE_RECOMMENDATION_DAYS", "0", "from 1 to 9999"),
        ("USER_PIPELINE_RECOMMENDATION_DAYS", "-3", "from 1 to 9999"),
        ("USER_PIPELINE_RECOMMENDATION_DAYS", "10000", "from 1 to 9999"),
        ("USER_PIPELINE_RECOMMENDATION_DAYS", "90d", "from 1 to 9999"),
        ("USER_PIPELINE_RECOMMENDATION_DAYS", "1.5", "from 1 to 9999"),
        ("USER_PIPELINE_RECOMMENDATION_MIN_VIEWERS", "0", "a whole number from 1, such as 3"),
        ("USER_PIPELINE_RECOMMENDATION_URLS", "/products/(", "a regular expression, such as"),
        ("USER_PIPELINE_RECOMMENDATION_EXCLUDE_URLS", "*.html", "nothing to repeat at position 0"),
        ("USER_PIPELINE_UI_URL", "dagster.example.com", "the address of the web server"),
        ("USER_PIPELINE_UI_URL", "ftp://dagster.example.com", "the address of the web server"),
        ("USER_PIPELINE_UI_URL", "https://host/?token=x", "without user, password or query"),
        ("USER_PIPELINE_UI_URL", "https://ho!st", "the address of the web server"),
        ("USER_PIPELINE_UI_HOSTS", "https://host", "host names and IP addresses, without scheme or port"),
        ("USER_PIPELINE_UI_HOSTS", "host:3000", "host names and IP addresses, without scheme or port"),
        ("USER_PIPELINE_UI_HOSTS", "host,*", "host names and IP addresses, without scheme or port"),
        ("USER_PIPELINE_UI_HOSTS", "[fd00::7]:3000", "host names and IP addresses, without scheme or port"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable_and_what_would_be_right(
    variable: str, value: str, expectation: str
) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.from_environment({variable: value})
    assert error.value.variables == (variable,)
    assert str(error.value).startswith(f"{variable}={value!r} cannot be used: expected ")
    assert expectation in str(error.value)


def test_each_wrong_setting_has_a_line_of_its_own() -> None:
    with pytest.raises(SettingsError) as error:
        read(
            USER_PIPELINE_DATA_DIR="s3://bucket/data",
            USER_PIPELINE_STAGING_URL=f"mysql://me:{SECRET}@host/x",
            USER_PIPELINE_MAX_OBJECT_LINES="-1",
            USER_PIPELINE_ALERT_WEBHOOK_URL=f"hooks/{SECRET}",
        )
    lines = str(error.value).splitlines()
    assert [line.partition(" cannot be used: expected ")[0] for line in lines] == [
        "USER_PIPELINE_DATA_DIR='s3://bucket/data'",
        "USER_PIPELINE_STAGING_URL='mysql://me:***@host/x'",
        "USER_PIPELINE_MAX_OBJECT_LINES='-1'",
        "USER_PIPELINE_ALERT_WEBHOOK_URL='***'",
    ]
    assert lines[2].endswith(" cannot be used: expected a whole number from 1, such as 100000000.")
    assert error.value.variables == (
        "USER_PIPELINE_DATA_DIR",
        "USER_PIPELINE_STAGING_URL",
        "USER_PIPELINE_MAX_OBJECT_LINES",
        "USER_PIPELINE_ALERT_WEBHOOK_URL",
    )


@pytest.mark.parametrize("field", ["memory_limit", "max_object_size"])
@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("2GB", 2 * 10**9),
        (" 2 gb ", 2 * 10**9),
        ("1.5GiB", 1_610_612_736),
        ("512MiB", 2**29),
        ("300000kb", 3 * 10**8),
        ("256000000B", 256 * 10**6),
    ],
)
def test_a_size_is_bytes_in_decimal_or_binary_units(field: str, value: str, size: int) -> None:
    assert getattr(Settings.from_environment({variable_of(field): value}), field) == size


@pytest.mark.parametrize("field", ["memory_limit", "max_object_size"])
@pytest.mark.parametrize(
    "value", ["2000000000", "2G", "2Gbit", "2PB", "2GB or so", "2_000MB", ".5GB", "1e3MB", "inf B"]
)
def test_a_size_has_no_other_spelling(field: str, value: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.from_environment({variable_of(field): value})
    assert error.value.variables == (variable_of(field),)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            (field, value)
            for field in ("max_compression_ratio", "max_object_lines", "max_object_rejects", "recommendation_days")
            for value in ("0", "+5", "1_0", "1.0", "1e1", "true", "9" * 16)
        ),
        ("start_date", "1491004800"),
        ("start_date", "20170401"),
        ("start_date", "2017-04-01T00:00"),
        ("max_reject_share", "inf"),
    ],
)
def test_numbers_and_dates_have_one_spelling(field: str, value: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.from_environment({variable_of(field): value})
    assert error.value.variables == (variable_of(field),)


def test_only_what_is_handed_over_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("USER_PIPELINE_RECOMMENDATION_DAYS=7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USER_PIPELINE_RECOMMENDATION_DAYS", "8")
    assert read().recommendation_days == 90
    assert Settings.from_environment().recommendation_days == 8
    assert read(user_pipeline_recommendation_days="9", recommendation_days="9").recommendation_days == 90


def test_reading_the_settings_loads_nothing_heavy() -> None:
    code = "import sys; from user_pipeline import settings; settings.current(); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert "pydantic_settings" in loaded
    assert not loaded & {
        "dagster",
        "pandas",
        "numpy",
        "scipy",
        "matplotlib",
        "pyarrow",
        "duckdb",
        "boto3",
        "sqlalchemy",
    }


@pytest.mark.parametrize("variable", DATABASES)
@pytest.mark.parametrize(
    "value",
    [
        f"mysql://me:{SECRET}@host/x",
        f"mysql://me:a@{SECRET}@host/x",
        f"http://host/x?user=me&password={SECRET}",
        f"postgresql+psycopg://me:{SECRET}@host/x",
        f"postgresql://me:{SECRET}@host:port/x",
        f"postgresql://me:{SECRET}@host",
        f"postgresql://me:{SECRET}/@host:1/x",
        f"postgresql://me:[{SECRET}@host/x",
        f"host=host password={SECRET}",
    ],
)
def test_no_error_ever_shows_a_password(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable) as error:
        Settings.from_environment({variable: value})
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("variable", LOCATIONS)
def test_a_password_put_where_a_location_belongs_is_not_shown(variable: str) -> None:
    with pytest.raises(SettingsError, match=variable) as error:
        Settings.from_environment({variable: f"postgresql://me:{SECRET}@host/x"})
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("postgresql://me:pw@host:5432/x", "postgresql://me:***@host:5432/x"),
        ("postgresql://me:p%40w:x@host/x", "postgresql://me:***@host/x"),
        ("postgresql://host/x?password=pw&user=me", "postgresql://host/x?password=***&user=me"),
        ("postgresql://host/x?sslpassword=pw", "postgresql://host/x?sslpassword=***"),
    ],
)
def test_a_hidden_password_leaves_the_rest_readable(url: str, shown: str) -> None:
    assert hide_password(url) == shown


def test_alerts_are_off_and_without_a_link_until_they_are_set() -> None:
    assert (read().alert_webhook, read().ui_url) == (None, None)
    assert read(USER_PIPELINE_UI_URL="https://host:3000/prod/").ui_url == "https://host:3000/prod"


def test_the_hosts_of_the_ui_are_written_in_one_way() -> None:
    assert read().ui_hosts == ()
    hosts = read(USER_PIPELINE_UI_HOSTS=" Web_Server.,dagster.internal,, 10.0.0.5 ,[FD00:0:0::7], ::1").ui_hosts
    assert hosts == ("web_server", "dagster.internal", "10.0.0.5", "fd00::7", "::1")


def test_a_webhook_is_kept_and_shown_by_its_host_alone() -> None:
    url = f"https://me:{SECRET}@hooks.example.com:8443/services/{SECRET}?key={SECRET}"
    settings = read(USER_PIPELINE_ALERT_WEBHOOK_URL=url)
    assert settings.alert_webhook is not None
    assert settings.alert_webhook.url.get_secret_value() == url
    assert SECRET not in repr(settings) + str(settings.alert_webhook) + settings.model_dump_json()
    assert str(settings.alert_webhook) == "https://hooks.example.com:8443/***"


@pytest.mark.parametrize(
    "value",
    [f"hooks/{SECRET}", f"ftp://host/{SECRET}", f"https:///{SECRET}", f"https://h/a {SECRET}", f"http://[{SECRET}"],
)
def test_a_webhook_that_is_no_url_is_not_shown(value: str) -> None:
    with pytest.raises(SettingsError, match="USER_PIPELINE_ALERT_WEBHOOK_URL") as error:
        read(USER_PIPELINE_ALERT_WEBHOOK_URL=value)
    assert SECRET not in str(error.value)


def test_the_address_of_the_ui_brings_no_password_into_alerts() -> None:
    with pytest.raises(SettingsError, match="USER_PIPELINE_UI_URL") as error:
        read(USER_PIPELINE_UI_URL=f"https://me:{SECRET}@host")
    assert SECRET not in str(error.value)


def test_what_is_unset_may_be_in_the_file_of_the_data_directory(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "# by hand\nUSER_PIPELINE_START_DATE=2020-01-02\nUSER_PIPELINE_MEMORY_LIMIT = '3GB'\n"
        "USER_PIPELINE_RECOMMENDATION_DAYS=30\nUSER_PIPELINE_DATA_DIR=/elsewhere\nUSER_PIPELINE_MAX_REJECT_SHARE=\n"
    )
    environment = {"USER_PIPELINE_RECOMMENDATION_DAYS": "7", "USER_PIPELINE_MEMORY_LIMIT": " "}
    settings = Settings.from_environment(environment, file)
    assert settings.start_date == date(2020, 1, 2)
    assert settings.memory_limit == 3 * 10**9
    assert settings.recommendation_days == 7
    assert settings.data_dir == Settings.from_environment({}).data_dir
    assert settings.max_reject_share == 0.05
    assert Settings.from_environment(environment, tmp_path / "missing").start_date == date(2017, 4, 1)


def test_a_wrong_value_in_the_file_is_named_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("USER_PIPELINE_START_DATE=tomorrow\n")
    with pytest.raises(SettingsError) as raised:
        Settings.from_environment({"USER_PIPELINE_ENGINE": "abacus"}, file)
    assert f"USER_PIPELINE_START_DATE='tomorrow' in {file} cannot be used" in str(raised.value)
    assert "USER_PIPELINE_ENGINE='abacus' cannot be used" in str(raised.value)


def test_the_file_lies_in_the_data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert env_file({}) == tmp_path / "data/.env"
    assert env_file({"USER_PIPELINE_DATA_DIR": str(tmp_path / "other")}) == tmp_path / "other/.env"
