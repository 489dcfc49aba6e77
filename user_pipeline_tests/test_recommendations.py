"""Recommendations through Dagster."""

from user_pipeline_tests.platform import Platform, update, view


def test_small(platform: Platform) -> None:
    platform.put("UserUpdates/x.csv", update("2017-04-01T00:00:42", 7, "ann@example.com", "Ann"))
    platform.put_views(
        "PageViews/y.json",
        [
            view("2017-04-01T10:00:00", url, user)
            for user, urls in {7: "ab", 8: "abc", 9: "bcd", 2**62: "a"}.items()
            for url in urls
        ]
        + [view("2017-04-02T10:00:00", url, user) for user, urls in {7: "c", 8: "d"}.items() for url in urls],
    )
    assert platform.materialize("2017-04-01").success
    for row in platform.table("analytics", "page_recommendations"):
        print(row)
    r = platform.materialize("2017-04-02")
    assert r.success
    for e in r.all_events:
        if e.event_type_value == "ASSET_MATERIALIZATION" and e.asset_key.path[-1] in (
            "recommendation_quality",
            "page_recommendations",
        ):
            print({k: v.value for k, v in e.materialization.metadata.items()})
    for row in platform.table("analytics", "page_recommendations") + platform.table(
        "analytics", "recommendation_quality"
    ):
        print(row)
    r = platform.materialize(
        "2017-04-01", "2017-04-03", run_config={"ops": {"page_recommendations": {"config": {"all_days": True}}}}
    )
    for e in r.all_events:
        if e.event_type_value == "ASSET_MATERIALIZATION" and e.asset_key.path[-1] in (
            "recommendation_quality",
            "page_recommendations",
        ):
            print(e.partition, {k: v.value for k, v in e.materialization.metadata.items()})
    for row in platform.table("analytics", "page_recommendations") + platform.table(
        "analytics", "recommendation_quality"
    ):
        print(row)
    print(platform.lake_files("page_recommendations"), platform.lake_files("exports"))
