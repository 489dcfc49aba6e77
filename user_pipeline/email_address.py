"""The one rule for what counts as a well-formed e-mail address."""

EMAIL_PATTERN = (
    r"^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+"
    r"@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    r"(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$"
)
"""A valid e-mail address as the WHATWG HTML standard defines it, the rule browsers apply to
``<input type=email>``: https://html.spec.whatwg.org/multipage/input.html#valid-e-mail-address.
Anchored, for RE2 and PostgreSQL; in Python use ``re.fullmatch``, because its ``$`` lets a line end pass."""
