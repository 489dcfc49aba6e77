import os
import random
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest
from faker import Faker
from hypothesis import given, settings
from hypothesis import strategies as st

from user_pipeline.email_address import EMAIL_PATTERN
from user_pipeline.fake_users.generate import generate


def test_the_same_seed_gives_the_same_users_whatever_ran_before() -> None:
    first = generate(50, 0.1, 0.15, 7)
    Faker.seed(1)
    Faker().name()
    random.seed(2)
    np.random.seed(3)  # noqa: NPY002  # the global state is what must not matter
    assert generate(50, 0.1, 0.15, 7).equals(first)
    assert not generate(50, 0.1, 0.15, 8).equals(first)


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_the_same_seed_gives_the_same_users_in_another_process(hash_seed: str) -> None:
    code = "from user_pipeline.fake_users.generate import generate as g; print(g(30, 0.1, 0.15, 7).to_pylist())"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == str(generate(30, 0.1, 0.15, 7).to_pylist())


@given(
    num_users=st.integers(1, 300),
    last_names=st.floats(0, 1),
    emails=st.floats(0, 1),
    seed=st.integers(0, 2**70),
)
@settings(max_examples=15, deadline=None)
def test_the_shares_of_missing_values_are_met_to_the_nearest_user(
    num_users: int, last_names: float, emails: float, seed: int
) -> None:
    users = generate(num_users, last_names, emails, seed).to_pydict()
    assert users["id"] == list(range(1, num_users + 1))
    assert abs(users["last_name"].count("") - last_names * num_users) <= 0.5
    assert abs(users["email"].count("") - emails * num_users) <= 0.5
    assert all(Decimal(30_000) <= salary <= Decimal(120_000) for salary in users["salary"])
    assert all(users["first_name"])
    assert all(users["city"])


def test_missing_values_and_salaries_are_spread_as_specified() -> None:
    users = generate(200_000, 0.10, 0.15, 1).to_pandas()
    no_name, no_email = users["last_name"] == "", users["email"] == ""
    assert no_name.sum() == 20_000
    assert no_email.sum() == 30_000
    assert (no_name & no_email).mean() == pytest.approx(0.015, abs=0.002)
    salaries = users["salary"].astype(float)
    assert salaries.mean() == pytest.approx(75_000, rel=0.005)
    assert np.histogram(salaries, bins=9, range=(30_000, 120_000))[0] == pytest.approx(200_000 / 9, rel=0.05)


def test_every_address_is_well_formed_and_another_one() -> None:
    emails = generate(20_000, 0, 0, 3)["email"].to_pandas()
    assert emails.is_unique
    assert emails.str.fullmatch(EMAIL_PATTERN).all()
    assert emails.str.contains(r"@example\.(?:com|net|org)$").all()
