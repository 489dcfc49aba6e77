"""The formats that Apache and nginx write access logs in, as regular expressions with a group for each field.

A format is written as in the configuration of either server. Fields have the names of nginx's variables.
"""

import re
from collections.abc import Iterator

COMMON = '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent'
COMBINED = f'{COMMON} "$http_referer" "$http_user_agent"'

_NGINX = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_APACHE = re.compile(r"%[<>!,0-9]*(?:\{([^}]*)\}(\^?[A-Za-z]{1,2})|([A-Za-z%]))")
_APACHE_NAMES = {
    "a": "remote_addr",
    "h": "remote_addr",
    "u": "remote_user",
    "r": "request",
    "s": "status",
    "l": "remote_logname",
    "b": "body_bytes_sent",
    "B": "body_bytes_sent",
    "O": "bytes_sent",
    "I": "request_length",
    "v": "server_name",
    "V": "host",
    "p": "server_port",
    "m": "request_method",
    "D": "request_time",
}
_APACHE_KINDS = {"i": "http_", "C": "cookie_", "o": "sent_http_", "e": "env_", "n": "note_"}
NEEDED = ("request", "status")


class FormatError(ValueError):
    """A format that no page views can be made of."""


def compile_format(text: str, *needed: str) -> re.Pattern[str]:
    """The expression that a whole line of a format matches.

    Args:
        text: as in the configuration of nginx (``log_format``) or Apache (``LogFormat``); its quotes may be escaped.
        needed: fields it has to have, beside those every page view needs.

    Raises:
        FormatError: a field is missing.
    """
    text = text.replace('\\"', '"')
    pieces = list(_apache(text) if _APACHE.search(text) and not _NGINX.search(text) else _nginx(text))
    fields = [name for name, _ in pieces if name]
    missing = [name for name in (*NEEDED, *needed) if name not in fields]
    if not {"time_local", "time_iso8601"} & set(fields):
        missing.append("time_local or $time_iso8601")
    if missing:
        raise FormatError(f"the format has no {', '.join(f'${name}' for name in missing)}: {text}")
    pattern, seen, before = "", set(), ""
    for (name, literal), (_, after) in zip(pieces, [*pieces[1:], ("", "")], strict=True):
        if not name:
            pattern += re.escape(literal)
            before = literal
            continue
        value = _value(before, after)
        pattern += f"({value})" if name in seen else f"(?P<{name}>{value})"
        seen.add(name)
        before = ""
    # nginx's default format ends with more than the combined one; what follows a space is no part of these fields.
    return re.compile(pattern + r"(?: .*)?")


def _value(before: str, after: str) -> str:
    """What a field holds, by what stands before and after it."""
    if before.endswith('"'):
        # Both servers escape a quote in it.
        return r'(?:[^"\\]|\\.)*'
    if before.endswith("["):
        return r"[^\]]*"
    # The name of a user may hold spaces.
    return r"[^\[]*" if after.startswith(" [") else r"\S*"


def _nginx(text: str) -> Iterator[tuple[str, str]]:
    """Names of fields, and between them literal text, which comes with an empty name."""
    at = 0
    for found in _NGINX.finditer(text):
        yield "", text[at : found.start()]
        yield found[1] or found[2], ""
        at = found.end()
    yield "", text[at:]


def _apache(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    for found in _APACHE.finditer(text):
        yield "", text[at : found.start()]
        at = found.end()
        argument, kind, plain = found.groups()
        if plain == "%":
            yield "", "%"
        elif plain == "t":
            # Its value includes the brackets.
            yield "", "["
            yield "time_local", ""
            yield "", "]"
        elif plain:
            yield _APACHE_NAMES.get(plain, f"apache_{plain}"), ""
        elif kind in _APACHE_KINDS:
            yield _APACHE_KINDS[kind] + re.sub(r"\W", "_", argument.lower()), ""
        else:
            yield {"a": "remote_addr", "s": "status"}.get(kind, "apache_" + re.sub(r"\W", "_", kind + argument)), ""
    yield "", text[at:]
