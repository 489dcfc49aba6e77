"""The traffic report through the pipeline: what it says is what was delivered."""

from datetime import UTC, date, datetime
from typing import Any

import pytest
from dagster import DagsterInstance

from user_pipeline.lake.registry import MissingPartitionError
from user_pipeline.traffic_report.collect import collect
from user_pipeline.traffic_report.report import Back, Report, Traffic
from user_pipeline_tests.platform import LOG_PIPELINE, Platform, update, view

NOW = datetime(2017, 4, 9, 0, 34, tzinfo=UTC)


def reports(platform: Platform, *days: str, min_viewers: int = 1) -> list[Report]:
    with platform.engine() as engine:
        wanted = [date.fromisoformat(day) for day in days]
        return list(collect(platform.lake, engine, wanted, made_at=NOW, min_viewers=min_viewers))


def deliver(platform: Platform) -> None:
    platform.put("UserUpdates/a", update("2017-04-01T08:00:00", 1, "ann@example.com") + "broken\n")
    platform.put_views(
        "PageViews/one",
        [
            view("2017-04-01T09:00:00", "/a", 1),
            view("2017-04-01T09:00:00", "/a", 2),
            view("2017-04-02T09:00:00", "/a", 1),
            view("2017-04-02T09:00:00", "/b", 3),
        ],
    )
    platform.put_views(
        "PageViews/two",
        [
            view("2017-04-03T09:00:00", "/a", 1, referrer="/x"),
            view("2017-04-03T09:00:00", "/a", 1, referrer="/x"),
            view("2017-04-03T09:00:00", "/a", 1, "staging"),
            view("2017-04-03T09:30:00", "/u/ann@example.com", 4),
            "not json",
            '{"ts": "2017-04-03T09:00:00", "user_id": 1, "environment": "production"}',
            "",
        ],
    )


def test_a_report_says_what_was_delivered(platform: Platform) -> None:
    deliver(platform)
    assert platform.materialize("2017-04-01", "2017-04-03", checks=False).success
    [report] = reports(platform, "2017-04-03")
    days = {day.isoformat(): traffic for day, traffic in report.days.items()}
    assert next(iter(days)) == "2017-03-21"
    assert [traffic for traffic in days.values() if traffic] == [
        Traffic(views=2, users=2, pages=1, new_users=2, new_pages=1),
        Traffic(views=2, users=2, pages=2, new_users=1, new_pages=1),
        Traffic(views=2, users=2, pages=2, new_users=1, new_pages=1),
    ]
    assert report.before("views") == 2
    assert report.usual("new_users") == 1.5
    assert report.back_after_a_day == Back(before=2, back=1)
    assert report.back_after_a_week == Back(before=3, back=1)
    assert [(page.url, page.views, page.viewers, page.usual) for page in report.top] == [
        ("/a", 1, 1, 1.5),
        ("***", 1, 1, 0.0),
    ]
    assert [page.url for page in report.rising] == ["***"]
    updates, views = report.feeds
    # No object brought user updates for that day.
    assert (updates.objects, updates.lines, updates.delivered, updates.kept) == (0, 0, 0, 0)
    assert (views.objects, views.lines, views.rows, views.blank) == (1, 7, 4, 1)
    assert views.rejected == {"malformed": 1, "missing_url": 1}
    assert (views.delivered, views.kept, views.duplicates, views.other_environments) == (4, 2, 1, 1)
    assert (views.further, views.new_fields) == (2, ("referrer",))


def test_pages_of_few_users_are_not_named(platform: Platform) -> None:
    deliver(platform)
    assert platform.materialize("2017-04-01", "2017-04-03", checks=False).success
    [report] = reports(platform, "2017-04-01", min_viewers=2)
    assert [page.url for page in report.top] == ["/a"]
    assert report.rising == []


def test_days_together_days_alone_and_later_days_make_no_difference(platform: Platform) -> None:
    deliver(platform)
    assert platform.materialize("2017-04-01", "2017-04-02", checks=False).success
    before = reports(platform, "2017-04-02")
    assert platform.materialize("2017-04-03", checks=False).success
    together = reports(platform, "2017-04-01", "2017-04-02", "2017-04-03")
    assert reports(platform, "2017-04-02") == [together[1]] == before
    assert reports(platform, "2017-04-01") == [together[0]]


def test_what_arrives_late_is_new_no_more(platform: Platform) -> None:
    deliver(platform)
    assert platform.materialize("2017-04-02", "2017-04-03", checks=False).success
    [report] = reports(platform, "2017-04-03")
    assert report.days[date(2017, 4, 1)] is None
    assert report.days[date(2017, 4, 2)] == Traffic(2, 2, 2, new_users=2, new_pages=2)
    platform.put_views("PageViews/late", [view("2017-04-01T10:00:00", "/b", 3)])
    assert platform.materialize("2017-04-01", checks=False).success
    [report] = reports(platform, "2017-04-03")
    assert report.days[date(2017, 4, 2)] == Traffic(2, 2, 2, new_users=0, new_pages=0)


def test_a_day_without_views_has_a_report(platform: Platform) -> None:
    assert platform.materialize("2017-04-01", select=LOG_PIPELINE, checks=False).success
    [report] = reports(platform, "2017-04-01")
    assert report.today == Traffic(0, 0, 0, 0, 0)
    assert (report.top, report.rising, report.recommendations) == ([], [], None)
    content = html(platform, "2017-04-01")
    assert "Nobody viewed a page on this day." in content


def test_a_day_that_is_not_there_is_named(platform: Platform) -> None:
    assert platform.materialize("2017-04-01", checks=False).success
    with pytest.raises(MissingPartitionError, match=r"user_page_views.*2017-04-02"):
        reports(platform, "2017-04-02")


def html(platform: Platform, day: str) -> str:
    file = platform.root / f"lake/exports/traffic_report/date={day}/traffic_report.html"
    return file.read_text(encoding="utf-8")


def test_each_day_of_a_run_has_its_file_with_picture_and_numbers_and_no_address(platform: Platform) -> None:
    deliver(platform)
    with DagsterInstance.ephemeral() as instance:
        result = platform.materialize("2017-04-01", "2017-04-03", select=LOG_PIPELINE, instance=instance)
    events: dict[str, Any] = {
        str(event.partition): event.metadata for event in result.asset_materializations_for_node("traffic_report")
    }
    assert list(events) == ["2017-04-01", "2017-04-02", "2017-04-03"]
    third = {name: value.value for name, value in events["2017-04-03"].items()}
    assert str(third["chart"]).startswith("![The last fourteen days](data:image/png;base64,")
    assert third["path"] == f"{platform.root}/lake/exports/traffic_report/date=2017-04-03/traffic_report.html"
    numbers = ("views", "users", "new_users", "pages", "new_pages", "came_back_share", "rejected_lines")
    assert [third[name] for name in numbers] == [2, 2, 1, 2, 1, 0.5, 2]
    # The day before the first there is nobody who could come back.
    assert "came_back_share" not in events["2017-04-01"]
    for day in events:
        content = html(platform, day)
        assert f"<title>Traffic report of {day}</title>" in content
        assert "@example" not in content
        assert "ann@" not in content
