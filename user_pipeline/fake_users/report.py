"""The report on the users of a day, as text and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pyarrow as pa

from user_pipeline.fake_users import tables


@dataclass(frozen=True, slots=True)
class City:
    """The clean users of one city."""

    name: str
    users: int
    average_salary: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What the report says; amounts in dollars, rounded to cents, None when there is no clean user.

    Attributes:
        raw_users: users generated.
        cleaned_users: users kept.
        average_salary: mean salary of the users kept.
        median_salary: half of them earn less.
        salary_deviation: standard deviation (of a sample; None for fewer than two users).
        cities: every city, most users first, then by name.
    """

    raw_users: int
    cleaned_users: int
    average_salary: float | None
    median_salary: float | None
    salary_deviation: float | None
    cities: Sequence[City]

    @property
    def removed_users(self) -> int:
        """Users not kept."""
        return self.raw_users - self.cleaned_users

    @property
    def top_cities(self) -> dict[str, int]:
        """The three cities with most users."""
        return {city.name: city.users for city in self.cities[:3]}


def summarize(raw_users: int, cleaned: pa.Table) -> Summary:
    """Summarize the users of a day.

    Args:
        raw_users: users generated.
        cleaned: the users kept: at least ``city`` (string) and ``salary`` (decimal).
    """
    salaries = tables.floats(cleaned["salary"]).to_numpy()
    # Decimal sums are exact, so no order of the rows and no number of threads shows in a mean.
    by_city = cleaned.group_by("city").aggregate([("city", "count"), ("salary", "sum")]).to_pylist()
    cities = [
        City(row["city"], row["city_count"], round(float(row["salary_sum"]) / row["city_count"], 2))
        for row in sorted(by_city, key=lambda row: (-row["city_count"], row["city"]))
    ]
    users = cleaned.num_rows
    total = float(sum(row["salary_sum"] for row in by_city))
    return Summary(
        raw_users=raw_users,
        cleaned_users=users,
        average_salary=round(total / users, 2) if users else None,
        median_salary=round(float(np.median(salaries)), 2) if users else None,
        salary_deviation=round(float(np.std(salaries, ddof=1)), 2) if users > 1 else None,
        cities=cities,
    )


def lines(summary: Summary, generated_on: datetime) -> list[str]:
    """The lines of the report."""
    average = "n/a" if summary.average_salary is None else f"${summary.average_salary:.2f}"
    return [
        "User Data Processing Report",
        f"Generated on: {generated_on:%Y-%m-%d %H:%M:%S}",
        "",
        f"Total Raw Users: {summary.raw_users}",
        f"Total Cleaned Users: {summary.cleaned_users}",
        f"Users Removed: {summary.removed_users}",
        f"Average Salary: {average}",
        f"Top 3 Cities: {summary.top_cities}",
    ]


def as_text(summary: Summary, generated_on: datetime) -> bytes:
    """The report as a text file."""
    return ("\n".join(lines(summary, generated_on)) + "\n").encode()


def as_json(summary: Summary, generated_on: datetime) -> bytes:
    """The report as JSON: its lines under ``report``, the numbers under ``stats``."""
    stats = {
        "total_raw_users": summary.raw_users,
        "total_cleaned_users": summary.cleaned_users,
        "removed_users": summary.removed_users,
        "average_salary": summary.average_salary,
        "top_cities": summary.top_cities,
        "median_salary": summary.median_salary,
        "salary_standard_deviation": summary.salary_deviation,
        "cities": [
            {"city": city.name, "users": city.users, "average_salary": city.average_salary} for city in summary.cities
        ],
    }
    document = {"report": lines(summary, generated_on), "stats": stats}
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
