"""A traffic report as one page of HTML that needs nothing else: no script, no network, no other file."""

from functools import cache
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from user_pipeline.traffic_report.charts import CHARTS, as_svg

if TYPE_CHECKING:
    from datetime import date

    from user_pipeline.traffic_report.report import Report

HEADLINES = {
    "views": "Page views",
    "users": "Users",
    "new_users": "New users",
    "pages": "Pages viewed",
    "new_pages": "New pages",
}
"""The numbers at the top, in their order."""
_SMALL = 0.005
_FOLD = 10
_EXACT = 10
_UNKNOWN = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"


def render(report: "Report") -> str:
    """The page. Every value in it is escaped: urls are whatever somebody asked for."""
    charts = {
        # The only markup that is taken as it is: it was drawn here, of numbers and days.
        name: (title, Markup(as_svg(name, report)))  # noqa: S704 - see the line above
        for name, (title, _) in CHARTS.items()
    }
    return _template().render(report=report, headlines=HEADLINES, charts=charts)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("user_pipeline.traffic_report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number,
        "percent": _percent,
        "points": _points,
        "date": _date,
        "short": _short,
        "usual": _usual,
    }
    environment.globals["change"] = _change
    return environment.get_template("page.html.jinja")


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{100 * share:.1f}%"


def _points(difference: float | None) -> str:
    return _UNKNOWN if difference is None else f"{100 * difference:+.1f}".replace("-", _MINUS)


def _date(day: "date") -> str:
    return f"{day:%A, %B} {day.day}, {day.year}"


def _short(day: "date") -> str:
    return f"{day:%a, %b} {day.day}"


def _usual(mean: float) -> str:
    return f"{mean:.1f}" if mean < _EXACT else f"{mean:,.0f}"


def _change(value: float, reference: float) -> str:
    """How a number compares, in words and a sign: color alone would not tell everybody."""
    if reference == 0:
        return "unchanged" if value == 0 else "up from 0"
    share = value / reference - 1
    if abs(share) < _SMALL:
        return "unchanged"
    if value >= _FOLD * reference:
        return f"▲ {value / reference:,.0f}-fold"
    return f"{'▲' if share > 0 else '▼'} {100 * abs(share):.0f}%"
