import numpy as np
import pytest
from scipy.sparse import csr_array

from benchmarks.evaluate import Quality, leave_out, measure


def test_measures_by_hand() -> None:
    held_out = csr_array(np.array([[1, 0, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]))
    ranked = np.array([[3, 0, 1], [1, 0, 2], [0, 1, 2], [-1, -1, -1]])

    quality = measure(ranked, held_out, 3)

    second, third = 1 / np.log2(3), 1 / np.log2(4)
    assert quality.users == 3
    assert quality.recall == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert quality.ndcg == pytest.approx((second + (1 + third) / (1 + second + third)) / 3)
    assert quality.hit_rate == pytest.approx(2 / 3)
    assert quality.coverage == pytest.approx(4 / 5)


def test_nothing_held_out_measures_nothing() -> None:
    assert measure(np.zeros((2, 3), int), csr_array((2, 4)), 3) == Quality(0, 0.0, 0.0, 0.0, 0.0)


def test_a_fifth_of_the_pages_of_users_with_five_is_held_out() -> None:
    matrix = csr_array(np.tril(np.ones((12, 12))))

    train, held_out = leave_out(matrix, seed=1)

    assert np.diff(held_out.indptr).tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    assert np.array_equal((train + held_out).toarray(), matrix.toarray())
    assert np.array_equal(leave_out(matrix, seed=1)[1].toarray(), held_out.toarray())
    assert not np.array_equal(leave_out(matrix, seed=2)[1].toarray(), held_out.toarray())
