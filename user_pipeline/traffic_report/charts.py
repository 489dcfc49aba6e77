"""The charts of a traffic report, as SVG for the page and as one PNG for the UI of Dagster."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from math import nan

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from user_pipeline.traffic_report.report import Report

_LABEL_EVERY = 4
_SIZE = 10.0
_BAR = 0.78
# Labels are of known lengths. Measuring them to find the best place would double the time of a drawing.
_PLACE = (0.12, 0.12, 0.87, 0.75)
_PLACES = {"left": 0.05, "right": 0.99, "bottom": 0.05, "top": 0.89, "wspace": 0.12, "hspace": 0.42}


@dataclass(frozen=True, slots=True)
class Colors:
    """What each part of a chart is drawn in."""

    text: str
    grid: str
    strong: str
    soft: str
    third: str


_PAPER = Colors(text="#4b5563", grid="#e2e5ea", strong="#3447c9", soft="#aab4f0", third="#b45309")
# Colors of no picture: each is replaced by a variable of the page's style sheet, which knows light and dark.
_VARIABLES = Colors(text="#010101", grid="#020202", strong="#030303", soft="#040404", third="#050505")
_NAMES = {getattr(_VARIABLES, name): f"var(--{name})" for name in Colors.__dataclass_fields__}


def views(axes: Axes, report: Report, colors: Colors) -> None:
    """Page views a day; the day of the report stands out."""
    _bars(axes, report, "views", colors)


def new_pages(axes: Axes, report: Report, colors: Colors) -> None:
    """Pages that nobody had viewed before, a day."""
    _bars(axes, report, "new_pages", colors)


def users(axes: Axes, report: Report, colors: Colors) -> None:
    """Users a day: those who had been there before, and on top of them those who are new."""
    known = list(report.days.values())
    returning = [nan if day is None else day.returning_users for day in known]
    new = [nan if day is None else day.new_users for day in known]
    axes.bar(range(len(known)), returning, _BAR, color=colors.strong, label="returning")
    axes.bar(range(len(known)), new, _BAR, bottom=returning, color=colors.third, label="new")
    _finish(axes, list(report.days), colors)
    _legend(axes, colors)


def hit_rates(axes: Axes, report: Report, colors: Colors) -> None:
    """The share of users who found a new page through their recommendations, a day, beside the two baselines."""
    lines = (
        ("hit_rate", "recommended", colors.strong, "-", 2.2),
        ("popularity_hit_rate", "popular", colors.third, "--", 1.4),
        ("trend_hit_rate", "trending", colors.text, ":", 1.6),
    )
    measured = list(report.quality.values())
    for name, label, color, style, width in lines:
        values = [nan if day is None or (rate := getattr(day, name)) is None else rate for day in measured]
        axes.plot(
            range(len(values)), values, style, color=color, linewidth=width, label=label, marker="o", markersize=3
        )
    low = [nan if day is None or day.hit_rate_low is None else day.hit_rate_low for day in measured]
    high = [nan if day is None or day.hit_rate_high is None else day.hit_rate_high for day in measured]
    axes.fill_between(range(len(low)), low, high, color=colors.strong, alpha=0.15, linewidth=0)
    _finish(axes, list(report.quality), colors)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _legend(axes, colors)


Draw = Callable[[Axes, Report, Colors], None]
CHARTS: dict[str, tuple[str, Draw]] = {
    "views": ("Page views a day", views),
    "users": ("Users a day", users),
    "new-pages": ("New pages a day", new_pages),
    "hit-rates": ("Users who found a new page through recommendations", hit_rates),
}
"""Title and function of each chart."""


def as_svg(name: str, report: Report) -> str:
    """A chart as an SVG element, in the colors of the page around it.

    Its text is text, and its ids begin with its name: several of them stand on one page.
    """
    # Of the whole process, but only while this is drawn: they are no options of savefig.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "traffic-report"}):
        figure = Figure(figsize=(4.4, 2.5))
        FigureCanvasSVG(figure)
        CHARTS[name][1](figure.add_axes(_PLACE), report, _VARIABLES)
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"#0[1-5]0[1-5]0[1-5]", lambda found: _NAMES[found[0]], svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    # The figure around it tells what it shows. Its size is that of the place it has.
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        r'<svg \1 xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true">',
        svg,
        count=1,
    )


def as_png(report: Report) -> bytes:
    """All charts as one picture; equal reports give equal bytes."""
    figure = Figure(figsize=(10, 5.6), dpi=90)
    FigureCanvasAgg(figure)
    places = figure.subplots(2, 2, gridspec_kw=_PLACES)
    for axes, (title, draw) in zip(places.flat, CHARTS.values(), strict=True):
        draw(axes, report, _PAPER)
        axes.set_title(title, loc="left", fontsize=_SIZE + 1, color="#1f2937", pad=20)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _bars(axes: Axes, report: Report, name: str, colors: Colors) -> None:
    heights = [nan if day is None else getattr(day, name) for day in report.days.values()]
    *_, last = shades = [colors.soft] * (len(heights) - 1) + [colors.strong]
    axes.bar(range(len(heights)), heights, _BAR, color=shades)
    _finish(axes, list(report.days), colors)
    axes.annotate(
        "" if heights[-1] != heights[-1] else f"{heights[-1]:,.0f}",
        (len(heights) - 1 + _BAR / 2, heights[-1]),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",  # a long number ends with its bar: beyond it there is no room
        fontsize=_SIZE,
        color=last,
    )


def _legend(axes: Axes, colors: Colors) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=3,
        frameon=False,
        fontsize=_SIZE,
        labelcolor=colors.text,
        borderpad=0,
        handlelength=1.4,
        columnspacing=1.2,
    )


def _finish(axes: Axes, days: Sequence[date], colors: Colors) -> None:
    """The same frame around each chart: days below, few round numbers at the left, faint lines."""
    last = len(days) - 1
    labeled = range(last % _LABEL_EVERY, len(days), _LABEL_EVERY)
    axes.set_xticks(labeled, [f"{days[at]:%b} {days[at].day}" for at in labeled])
    axes.set_xlim(-0.7, last + 0.7)
    axes.set_ylim(bottom=0)
    if axes.get_ylim()[1] < 1 and not axes.lines:
        axes.set_ylim(top=1)
    axes.margins(y=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=not axes.lines))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(length=0, labelsize=_SIZE, labelcolor=colors.text)
    axes.grid(axis="y", color=colors.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set_visible(True)
    axes.spines["bottom"].set_color(colors.grid)
