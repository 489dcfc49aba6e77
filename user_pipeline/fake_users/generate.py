"""Fake users from a seed: the same numbers and names on any machine, whatever ran before."""

import decimal
import math

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from faker import Faker

# Names repeat among real people, so a pool costs nothing but the time Faker would take for each user.
NAMES = 1_000
# Few enough that a day of 100 users has cities with several of them to rank.
CITIES = 40
LOWEST_CENTS, HIGHEST_CENTS = 30_000_00, 120_000_00


def generate(num_users: int, missing_last_name_share: float, missing_email_share: float, seed: int) -> pa.Table:
    """Make ``num_users`` users.

    Args:
        num_users: how many, 1 or more.
        missing_last_name_share: share of the users, to the nearest whole one, without a last name.
        missing_email_share: the same for e-mail addresses; the two are drawn independently.
        seed: decides everything that is drawn, 0 or more.

    Returns:
        Columns ``id`` (int64, 1 to ``num_users``), ``first_name``, ``last_name``, ``email``, ``city``
        (string, empty when missing) and ``salary`` (decimal(12,2), uniform over the cents from
        30,000.00 to 120,000.00). Every address is a different one, at a domain reserved for examples.
    """
    fake = Faker("en_US")
    fake.seed_instance(seed)
    draw = _Draws(seed)
    first_names = [fake.first_name() for _ in range(NAMES)]
    last_names = [fake.last_name() for _ in range(NAMES)]
    mailboxes, domains = zip(*(fake.safe_email().split("@") for _ in range(NAMES)), strict=True)
    cities = [fake.city() for _ in range(CITIES)]

    ids = pa.array(np.arange(1, num_users + 1))
    local_parts = pc.binary_join_element_wise(
        # Without the digits Faker may have put there, the number behind it makes the address unique.
        draw.choose([mailbox.rstrip("0123456789") for mailbox in mailboxes], num_users),
        ids.cast(pa.string()),
        "",
    )
    emails = pc.binary_join_element_wise(local_parts, draw.choose(domains, num_users), "@")
    return pa.table(
        {
            "id": ids,
            "first_name": draw.choose(first_names, num_users),
            "last_name": pc.if_else(
                draw.share(missing_last_name_share, num_users), "", draw.choose(last_names, num_users)
            ),
            "email": pc.if_else(draw.share(missing_email_share, num_users), "", emails),
            "city": draw.choose(cities, num_users),
            "salary": _dollars(LOWEST_CENTS + draw.below(HIGHEST_CENTS - LOWEST_CENTS + 1, num_users)),
        }
    )


class _Draws:
    """Random numbers derived from the raw output of PCG64 alone.

    NumPy promises that output for a seed across versions and machines, and does not promise it for
    the methods of ``numpy.random.Generator``.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def below(self, limit: int, size: int) -> npt.NDArray[np.int64]:
        """``size`` whole numbers from 0 to ``limit`` - 1, equally likely."""
        unit = (self._bits.random_raw(size) >> 11) * 2.0**-53
        return (unit * limit).astype(np.int64)

    def choose(self, pool: "list[str] | tuple[str, ...]", size: int) -> pa.Array:
        """``size`` members of ``pool``, equally likely and with repetition."""
        return pa.array(pool, pa.string()).take(pa.array(self.below(len(pool), size)))

    def share(self, share: float, size: int) -> pa.Array:
        """A mask of ``size`` that is true in exactly ``share`` of the places, to the nearest whole one."""
        chosen = np.zeros(size, dtype=np.bool_)
        order = np.argsort(self._bits.random_raw(size), kind="stable")
        chosen[order[: math.floor(share * size + 0.5)]] = True
        return pa.array(chosen)


def _dollars(cents: npt.NDArray[np.int64]) -> pa.Array:
    whole = pa.array(cents).cast(pa.decimal128(19, 0))
    return pc.multiply(whole, pa.scalar(decimal.Decimal("0.01"))).cast(pa.decimal128(12, 2))
