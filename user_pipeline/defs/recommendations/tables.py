"""The assets of the tables that are made from the history of a day."""

from pathlib import Path
from typing import Any

import dagster as dg

from user_pipeline.defs.common import FRESHNESS, OWNERS, PERSONAL, column_lineage, column_schema
from user_pipeline.defs.links import links
from user_pipeline.io_managers.partitioned import PARTITIONED
from user_pipeline.recommendations.page_lists import POPULAR, RELATED
from user_pipeline.recommender.defaults import TREND_DAYS


def _snapshots(code_version: str, description: str, metadata: dict[str, Any], **options: Any) -> dg.AssetOut:  # noqa: ANN401 - AssetOut's
    """The output of a table of snapshots."""
    return dg.AssetOut(
        code_version=code_version,
        description=description,
        group_name="marts",
        kinds={"postgres", "table", "parquet"},
        io_manager_key="snapshots_io_manager",
        dagster_type=PARTITIONED,
        is_required=False,
        owners=OWNERS,
        freshness_policy=FRESHNESS,
        metadata={**metadata, **links("page_recommendations", "marts", Path(__file__).with_name("assets.py"))},
        **options,
    )


OUTS = {
    "page_recommendations": _snapshots(
        "3",
        "The three unseen pages that suit each user best, as of the end of the day; the table is that of the "
        "newest."
        "\n\nA run of days before the newest brings in what was late, which the newest day is made of as well: it "
        "is computed anew with them.",
        {
            **column_schema(
                ("user_id", "bigint", "Who viewed a page in the last USER_PIPELINE_RECOMMENDATION_DAYS days."),
                ("email", "text", "The user's latest e-mail address; null if no valid production update is known."),
                (
                    "recommended_url",
                    "text",
                    "A page that enough others viewed in these days, and the user on no day so far.",
                ),
                ("rank", "integer", "1 is best, 3 the last; fewer only where fewer pages are unseen."),
                unique=("user_id", "rank"),
            ),
            **column_lineage(
                user_id="user_page_views.user_id",
                email="users.email",
                recommended_url="user_page_views.url",
                rank="user_page_views.user_id user_page_views.url",
            ),
        },
        tags=PERSONAL,
    ),
    "related_pages": _snapshots(
        "1",
        "The pages that go with each page, for whoever is on it, known or not; as of the end of the day, by the "
        "weights that recommendations are made of. The table is that of the newest day.",
        {
            **column_schema(
                (
                    "url",
                    "text",
                    "A page that enough users viewed in the last USER_PIPELINE_RECOMMENDATION_DAYS days.",
                ),
                ("related_url", "text", "Another one."),
                (
                    "rank",
                    "integer",
                    f"1 goes with it best; up to {RELATED}, fewer where it speaks for fewer pages.",
                ),
                ("score", "double precision", "How much a view of the page speaks for the other one; above 0."),
                unique=("url", "rank"),
            ),
            **column_lineage(url="user_page_views.url", related_url="user_page_views.url"),
        },
    ),
    "popular_pages": _snapshots(
        "1",
        f"The {POPULAR} pages to show to a user without history, as of the end of the day; the table is that of "
        "the newest.",
        {
            **column_schema(
                (
                    "url",
                    "text",
                    "A page that enough users viewed in the last USER_PIPELINE_RECOMMENDATION_DAYS days.",
                ),
                ("rank", "integer", f"1 has most viewers, up to {POPULAR}; ties go by url."),
                ("viewers", "bigint", "How many users viewed it in these days."),
                (
                    "first_viewers",
                    "bigint",
                    f"How many viewed it for the first time in the last {TREND_DAYS} days.",
                ),
                unique=("url",),
            ),
            **column_lineage(url="user_page_views.url", viewers="user_page_views.user_id"),
        },
    ),
    "recommendation_parameters": _snapshots(
        "1",
        "How the model of the day's recommendations was chosen: the candidates, and how each would have done on "
        "the last days. The table is that of the newest day.",
        {
            **column_schema(
                ("rank", "integer", "1 is the chosen one; the others in the order they are tried in."),
                ("is_chosen", "boolean", "Whether the recommendations are made with it."),
                (
                    "chosen_by",
                    "text",
                    "Of the chosen one: playback, default (none was clearly better), too little past, run config.",
                ),
                (
                    "personal",
                    "boolean",
                    "Whether what a user has seen counts; otherwise trend or popularity alone.",
                ),
                ("regularisation", "double precision", "The ridge penalty, in squared views."),
                ("long_range", "double precision", "How much pages count together that were viewed far apart."),
                ("direction", "double precision", "How much more a page counts for what came after it."),
                ("trend", "double precision", "How much the discovery trend counts."),
                ("days", "bigint", "How many days were played back."),
                (
                    "users",
                    "bigint",
                    "How many users it was judged by, one on two days counting twice; not all if it dropped out.",
                ),
                ("recall_at_3", "double precision", "Mean of new pages it would have found / min(3, new pages)."),
                ("gain", "double precision", "How much more that is than the default's."),
                ("standard_error", "double precision", "Of the gain, paired over users."),
                unique=("rank",),
            ),
            **column_lineage(recall_at_3="user_page_views.user_id user_page_views.url"),
        },
    ),
}
