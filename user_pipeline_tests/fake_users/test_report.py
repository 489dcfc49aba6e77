import json
from datetime import UTC, datetime

import pytest

from user_pipeline.fake_users.clean import clean
from user_pipeline.fake_users.generate import generate
from user_pipeline.fake_users.report import as_json, as_text, lines, summarize
from user_pipeline_tests.fake_users.tables import cleaned

NOW = datetime(2017, 4, 3, 4, 5, 6, tzinfo=UTC)


def test_the_report_of_a_fixed_seed_reads_as_it_always_did() -> None:
    users, _ = clean(generate(100, 0.10, 0.15, 20170402), NOW)
    assert as_text(summarize(100, users), NOW).decode() == (
        "User Data Processing Report\n"
        "Generated on: 2017-04-03 04:05:06\n"
        "\n"
        "Total Raw Users: 100\n"
        "Total Cleaned Users: 75\n"
        "Users Removed: 25\n"
        "Average Salary: $78209.11\n"
        "Top 3 Cities: {'North Diane': 6, 'South Sherryville': 6, 'Jamesstad': 4}\n"
    )


def test_the_json_report_holds_the_same_lines_and_the_numbers() -> None:
    summary = summarize(
        5,
        cleaned(
            [
                ("Ann", "Lee", "a@b.c", "Zürich", "30000.00"),
                ("Bob", "Lee", "b@b.c", "Bern", "40000.01"),
                ("Cid", "Lee", "c@b.c", "Zürich", "50000.04"),
            ]
        ),
    )
    document = json.loads(as_json(summary, NOW))
    assert document["report"] == as_text(summary, NOW).decode().splitlines()
    assert document["stats"] == {
        "total_raw_users": 5,
        "total_cleaned_users": 3,
        "removed_users": 2,
        "average_salary": 40000.02,
        "top_cities": {"Zürich": 2, "Bern": 1},
        "median_salary": 40000.01,
        "salary_standard_deviation": 10000.02,
        "cities": [
            {"city": "Zürich", "users": 2, "average_salary": 40000.02},
            {"city": "Bern", "users": 1, "average_salary": 40000.01},
        ],
    }


def test_a_day_without_clean_users_has_no_average() -> None:
    summary = summarize(4, cleaned([]))
    assert lines(summary, NOW)[3:] == [
        "Total Raw Users: 4",
        "Total Cleaned Users: 0",
        "Users Removed: 4",
        "Average Salary: n/a",
        "Top 3 Cities: {}",
    ]
    stats = json.loads(as_json(summary, NOW))["stats"]
    assert stats["average_salary"] is None
    assert stats["median_salary"] is None
    assert stats["salary_standard_deviation"] is None
    assert stats["top_cities"] == {}


def test_cities_with_equally_many_users_are_ordered_by_name() -> None:
    users = cleaned([("Ann", "Lee", "a@b.c", city, 1) for city in ["d", "c", "b", "a", "d"]])
    assert summarize(5, users).top_cities == {"d": 2, "a": 1, "b": 1}


def test_one_user_has_no_standard_deviation() -> None:
    assert summarize(1, cleaned([("Ann", "Lee", "a@b.c", "Bern", 7)])).salary_deviation is None


@pytest.mark.parametrize(("salary", "shown"), [("1234567.5", "$1234567.50"), ("0", "$0.00")])
def test_the_average_has_two_decimals_and_no_separators(salary: str, shown: str) -> None:
    summary = summarize(1, cleaned([("Ann", "Lee", "a@b.c", "Bern", salary)]))
    assert f"Average Salary: {shown}" in lines(summary, NOW)
