"""The salary histogram."""

import io

import numpy as np
import pyarrow as pa
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from user_pipeline.fake_users import tables

# The range salaries are drawn from, so that the pictures of two days can be compared.
LOWEST, HIGHEST = 30_000.0, 120_000.0
BINS = 18


def salary_histogram(salaries: pa.ChunkedArray, *, title: str) -> bytes:
    """Draw how salaries are distributed.

    Args:
        salaries: decimals, in dollars; none gives an empty chart.
        title: heading of the chart.

    Returns:
        A PNG picture; equal arguments give equal bytes.
    """
    values = tables.floats(salaries).to_numpy()
    ends = (float(np.min(values, initial=LOWEST)), float(np.max(values, initial=HIGHEST)))
    figure = Figure(figsize=(8, 4.5), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(values, bins=BINS, range=ends, color="#4f43dd", edgecolor="white")
    axes.set(title=title, xlabel="Salary", ylabel="Users")
    axes.xaxis.set_major_formatter(StrMethodFormatter("${x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    if not len(values):
        axes.text(0.5, 0.5, "no users", transform=axes.transAxes, ha="center", va="center")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()
