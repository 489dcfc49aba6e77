"""Small tables of users, by hand or by hypothesis."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from user_pipeline.fake_users.columns import CLEANED, RAW
from user_pipeline.fake_users.tables import schema

STAMP = "2017-04-03 04:05:06"

# Every character UTF-8 can carry, and more often those that something on the way might trip over.
odd_text = st.one_of(
    st.text(max_size=12),
    st.text(st.sampled_from("\",;'\r\n\t\0\x0b\x1f\x7f\x85\u2028\ufeff\uffff_x0041=+-@# 😀אبé"), max_size=12),
    st.sampled_from(
        [
            "NA",
            "null",
            "None",
            "nan",
            "",
            " ",
            "=1+1",
            "+1",
            "-1",
            "@SUM(A1)",
            "\t=1",
            "\r=1",
            "#N/A",
            "_x000D_",
        ]
    ),
    st.sampled_from(["مريم", "שָׁלוֹם", "👩‍👩‍👧‍👦", 'O"Neil, Jr.', "line\nbreak", "line\r\nbreak", "007", "1e5", "TRUE"]),
)
_row = st.tuples(odd_text, odd_text, odd_text, odd_text, st.decimals(0, 1_000_000, places=2))


def raw(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Users from (first name, last name, e-mail, city, salary), numbered from 1."""
    numbered = [(number, *row[:-1], Decimal(row[-1])) for number, row in enumerate(rows, start=1)]
    columns = zip(*numbered, strict=True) if numbered else [[] for _ in RAW]
    values = zip(columns, schema(RAW), strict=True)
    return pa.table([pa.array(list(column), field.type) for column, field in values], schema=schema(RAW))


def cleaned(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    """The same with the time they were processed."""
    users = raw(rows)
    return users.append_column("processed_at", pa.array([STAMP] * users.num_rows, pa.string())).cast(schema(CLEANED))


raw_tables = st.lists(_row, max_size=5).map(raw)
cleaned_tables = st.lists(_row, max_size=5).map(cleaned)
