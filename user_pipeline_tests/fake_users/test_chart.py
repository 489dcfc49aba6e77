import io

import pyarrow as pa
import pytest
from matplotlib.image import imread

from user_pipeline.fake_users.chart import salary_histogram


def salaries(*values: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.decimal128(12, 2))])


@pytest.mark.parametrize("values", [(), (30_000,), (30_000, 75_000, 120_000), (1, 500_000)])
def test_any_salaries_make_a_picture(values: tuple[int, ...]) -> None:
    assert imread(io.BytesIO(salary_histogram(salaries(*values), title="Salaries"))).shape == (360, 640, 4)


def test_equal_salaries_make_equal_pictures() -> None:
    first = salary_histogram(salaries(30_000, 75_000), title="Salaries")
    assert salary_histogram(salaries(30_000, 75_000), title="Salaries") == first
    assert salary_histogram(salaries(30_000, 35_000), title="Salaries") != first
    assert b"Software" not in first
