"""Asset checks: what must hold for the days just materialized, looked up in what was stored.

Each check has a function of its own that takes stores and databases and gives an
:class:`~dagster.AssetCheckResult`; the checks of one asset run as one op.
"""

from user_pipeline.checks.cleaned import cleaned_checks
from user_pipeline.checks.marts import mart_checks
from user_pipeline.checks.raw import raw_checks
from user_pipeline.checks.recommendations import recommendation_checks
from user_pipeline.ingest.feeds import PAGE_VIEWS, USER_UPDATES

CHECKS = [
    raw_checks(USER_UPDATES),
    raw_checks(PAGE_VIEWS),
    cleaned_checks(USER_UPDATES),
    cleaned_checks(PAGE_VIEWS),
    mart_checks("users", ("user_id",)),
    mart_checks("user_page_views", ("user_id", "url")),
    *recommendation_checks(),
]
