"""The pipeline as a whole: files in, tables out."""

import csv
from datetime import datetime

from user_pipeline_tests.platform import LOG_PIPELINE, Platform, update, view


def test_a_day_goes_from_raw_lines_to_the_tables_people_query(platform: Platform) -> None:
    platform.put("UserUpdates/x.csv", update("2017-04-01T00:00:42", 7, "ann@example.com", "Ann"))
    platform.put_views(
        "PageViews/nested/y.json.gz",
        [
            view("2017-04-01T10:00:00", "/a", 7),
            view("2017-04-01T10:00:00", "/a", 7),
            view("2017-04-01T11:00:00+02:00", "/a", "7"),
            view("2017-04-01T12:00:00", "/a", 7, "staging"),
            view("2017-04-01T12:00:00.5Z", "/b", 8),
            "not json",
        ],
    )

    assert platform.materialize("2017-04-01", select=LOG_PIPELINE).success

    assert platform.table("analytics", "user_page_views") == [
        (7, "ann@example.com", "/a", 2, datetime(2017, 4, 1, 10)),
        (8, None, "/b", 1, datetime(2017, 4, 1, 12, 0, 0, 500000)),
    ]
    assert platform.table("analytics", "users") == [(7, "ann@example.com", "Ann", datetime(2017, 4, 1, 0, 0, 42))]
    assert platform.table("staging", "rejected_lines") == [
        ("page_views", "PageViews/nested/y.json.gz", 6, "malformed", "not json")
    ]
    with (platform.root / "lake/exports/user_page_views/date=2017-04-01/user_page_views.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["user_id", "email", "url", "count", "last_viewed"],
            ["7", "ann@example.com", "/a", "2", "2017-04-01 10:00:00"],
            ["8", "", "/b", "1", "2017-04-01 12:00:00.5"],
        ]


def test_an_empty_source_gives_empty_tables(platform: Platform) -> None:
    assert platform.materialize("2017-04-01", "2017-04-03", select=LOG_PIPELINE).success
    assert platform.rows("analytics", "select * from user_page_views") == []
    assert platform.rows("staging", "select * from page_views") == []


def test_the_preview_of_an_incremental_table_shows_the_table(platform: Platform) -> None:
    platform.put("UserUpdates/a", update("2017-04-01T08:00:00", 1))
    platform.put_views("PageViews/a", [view("2017-04-01T09:00:00")])
    result = platform.materialize("2017-04-01")
    for asset, columns in (("users", "user | email | name"), ("user_page_views", "user | email | url | count")):
        [event] = result.asset_materializations_for_node(asset)
        shown = str(event.metadata["preview"].value).replace("\\_id", "")
        assert columns in shown, shown
