"""The columns of the fake users, named, typed and described once."""

from typing import Literal, NamedTuple


class Column(NamedTuple):
    """A column as every file of the pipeline knows it."""

    name: str
    type: Literal["integer", "text", "decimal(12,2)"]
    description: str


RAW = (
    Column("id", "integer", "Number of the user, from 1."),
    Column("first_name", "text", "Given name."),
    Column("last_name", "text", "Family name; empty when missing."),
    Column("email", "text", "E-mail address; empty when missing."),
    Column("city", "text", "City the user lives in."),
    Column("salary", "decimal(12,2)", "Yearly salary in dollars, 30,000.00 to 120,000.00."),
)
CLEANED = (*RAW, Column("processed_at", "text", "When the run that cleaned the row started (UTC)."))
