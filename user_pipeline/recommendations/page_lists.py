"""Parquet files of one day: lists of pages for users without history, and how the model was chosen.

They are learned from the same history, with the same weights, as the recommendations of the day.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

    from user_pipeline.recommendations.codes import History
    from user_pipeline.recommendations.snapshot import Choices, Learned
    from user_pipeline.recommender.race import Choice

RELATED = 10
"""How many related pages a page has at most."""
POPULAR = 100
"""How many pages for users without history there are at most."""


def write_related(learned: "Learned", history: "History", file: "Path", choices: "Choices") -> int:
    """Write the pages that go with each page to a Parquet file: ``url``, ``related_url``, ``rank``, ``score``.

    Returns:
        how many rows there are; pages that nothing speaks for have none.
    """
    import pyarrow as pa

    from user_pipeline.recommender.related import related

    page, other, rank, score = related(learned.views, learned.weights, RELATED)
    columns = {
        "url": history.pages.take(pa.array(page)),
        "related_url": history.pages.take(pa.array(other)),
        "rank": pa.array(rank),
        "score": pa.array(score),
    }
    return _write(pa.table(columns), file, choices)


def write_popular(learned: "Learned", history: "History", file: "Path", choices: "Choices") -> int:
    """Write the pages most users viewed to a Parquet file: ``url``, ``rank``, ``viewers``, ``first_viewers``.

    Returns:
        how many rows there are.
    """
    import numpy as np
    import pyarrow as pa

    page = learned.views.pages[:POPULAR]
    columns = {
        "url": history.pages.take(pa.array(page)),
        "rank": pa.array(np.arange(1, len(page) + 1, dtype=np.int32)),
        "viewers": pa.array(learned.views.popularity[:POPULAR]),
        "first_viewers": pa.array(learned.discoveries[page]),
    }
    return _write(pa.table(columns), file, choices)


def write_trials(choice: "Choice", file: "Path", choices: "Choices") -> int:
    """Write how the model was chosen to a Parquet file, a row for each candidate, the chosen one first.

    Returns:
        how many rows there are.
    """
    import pyarrow as pa

    tried = {trial.parameters: trial for trial in choice.trials}
    order = [choice.parameters, *(parameters for parameters in tried if parameters != choice.parameters)]
    rows = [
        {
            "rank": number,
            "is_chosen": number == 1,
            "chosen_by": choice.why if number == 1 else None,
            "personal": parameters.personal,
            "regularisation": parameters.regularisation,
            "long_range": parameters.long_range,
            "direction": parameters.direction,
            "trend": parameters.trend,
            "days": choice.days,
            "users": tried[parameters].users if parameters in tried else choice.users,
            "recall_at_3": tried[parameters].recall if parameters in tried else None,
            "gain": tried[parameters].gain if parameters in tried else None,
            "standard_error": tried[parameters].error if parameters in tried else None,
        }
        for number, parameters in enumerate(order, start=1)
    ]
    schema = pa.schema(
        [
            ("rank", pa.int32()),
            ("is_chosen", pa.bool_()),
            ("chosen_by", pa.string()),
            ("personal", pa.bool_()),
            *((name, pa.float64()) for name in ("regularisation", "long_range", "direction", "trend")),
            ("days", pa.int64()),
            ("users", pa.int64()),
            *((name, pa.float64()) for name in ("recall_at_3", "gain", "standard_error")),
        ]
    )
    return _write(pa.Table.from_pylist(rows, schema=schema), file, choices)


def _write(table: "pa.Table", file: "Path", choices: "Choices") -> int:
    import pyarrow.parquet as pq

    pq.write_table(table.cast(choices.kept_in(table.schema)), file, compression="zstd")
    return int(table.num_rows)
