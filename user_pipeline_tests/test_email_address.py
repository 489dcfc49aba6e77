import re

import pytest

from user_pipeline.email_address import EMAIL_PATTERN


@pytest.mark.parametrize(
    "address",
    [
        "a@b",
        "a@b.c",
        "first.last+tag@sub.example.com",
        "!#$%&'*+/=?^_`{|}~-@x.y",
        ".a.@b.c",
        f"a@{'b' * 63}.c",
    ],
)
def test_addresses_browsers_accept_are_well_formed(address: str) -> None:
    assert re.fullmatch(EMAIL_PATTERN, address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "a",
        "@b",
        "a@",
        "a@b@c",
        "a b@c.d",
        "a@-b.c",
        "a@b-.c",
        "a@b..c",
        "a@.b",
        "é@b.c",
        f"a@{'b' * 64}.c",
        "a@b_c",
    ],
)
def test_addresses_browsers_refuse_are_not(address: str) -> None:
    assert not re.fullmatch(EMAIL_PATTERN, address)
