"""What becomes of a line of an access log, by the rules."""

import json
import re
from typing import Any

import pytest

from user_pipeline.access_logs.formats import COMBINED, COMMON, FormatError, compile_format
from user_pipeline.access_logs.views import LONGEST_LINE, Converter, Rules

BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
KEY = b"a key of the tests"


def line(request: str = "GET /a HTTP/1.1", status: int = 200, **fields: str) -> str:
    """A line of the combined format."""
    return (
        f"{fields.get('ip', '192.0.2.7')} - {fields.get('user', '-')} "
        f"[{fields.get('time', '01/Apr/2017:10:00:00 +0000')}] "
        f'"{request}" {status} 512 "{fields.get("referer", "-")}" "{fields.get("agent", BROWSER)}"\n'
    )


def convert(*lines: str | bytes, **rules: Any) -> tuple[list[str], dict[str, int]]:
    converter = Converter(Rules(KEY, **rules))
    encoded = [text if isinstance(text, bytes) else text.encode() for text in lines]
    return [text.decode(errors="replace") for text in converter.convert(encoded)], dict(converter.counts)


def view(*lines: str | bytes, **rules: Any) -> dict[str, Any]:
    [converted], counts = convert(*lines, **rules)
    assert counts == {"page views": 1}
    found: dict[str, Any] = json.loads(converted)
    return found


def urls(*requests: str, **rules: Any) -> list[str]:
    return [json.loads(text)["url"] for text in convert(*map(line, requests), **rules)[0]]


def test_a_page_request_is_a_page_view() -> None:
    found = view(line("GET /a/b%20c?x=1#y HTTP/1.1", time="01/Apr/2017:10:00:00 +0230"))
    assert found == {
        "ts": "2017-04-01T10:00:00+02:30",
        "url": "/a/b%20c",
        "environment": "production",
        "user_id": found["user_id"],
    }
    assert 0 <= found["user_id"] < 2**63


def test_the_common_format_and_what_follows_the_combined_one_are_understood() -> None:
    common = line().partition(' "-"')[0]
    assert view(common + "\n") == view(line()) == view(line().rstrip() + ' "198.51.100.1"\n') == view(common)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"status": 404}, "another status"),
        ({"status": 302}, "another status"),
        ({"request": "POST /a HTTP/1.1"}, "another method"),
        ({"request": "HEAD /a HTTP/1.1"}, "another method"),
        ({"request": "GET /a.css HTTP/1.1"}, "no page"),
        ({"request": "GET /img/A.PNG?v=3 HTTP/2.0"}, "no page"),
        ({"request": "GET /favicon.ico HTTP/1.1"}, "no page"),
        ({"agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"}, "a bot"),
        ({"agent": "curl/8.4.0"}, "a bot"),
        ({"agent": 'x\\" Mozilla/5.0 (compatible; bingbot/2.0)'}, "a bot"),
    ],
)
def test_what_is_no_page_view_of_a_person_is_left_out_and_counted(changes: dict[str, Any], why: str) -> None:
    assert convert(line(**changes)) == ([], {f"left out: {why}": 1})


def test_rules_can_be_set() -> None:
    requests = ["GET /a HTTP/1.1", "POST /b HTTP/1.1", "GET /c.pdf HTTP/1.1", "GET /d?q=1 HTTP/1.1"]
    assert urls(*requests) == ["/a", "/d"]
    assert urls(*requests, methods=frozenset({"GET", "POST"})) == ["/a", "/b", "/d"]
    assert urls(*requests, exclude="") == ["/a", "/c.pdf", "/d"]
    assert urls(*requests, exclude="^/a$|pdf") == ["/d"]
    assert urls(*requests, only="^/d") == ["/d"]
    assert urls(*requests, keep_query=True) == ["/a", "/d?q=1"]
    assert view(line(agent="curl/8"), keep_bots=True)["url"] == "/a"
    assert view(line(status=404), statuses=frozenset({"404"}))["url"] == "/a"
    assert view(line(), environment='te"st')["environment"] == 'te"st'
    with pytest.raises(re.error):
        Converter(Rules(KEY, only="("))


@pytest.mark.parametrize(
    ("request_line", "url"),
    [
        ("GET http://example.com/a?b HTTP/1.1", "/a"),
        ("GET https://example.com/a HTTP/1.1", "/a"),
        ("GET /a", "/a"),
        ("GET /caf\\xC3\\xA9 HTTP/1.1", "/café"),
        ("GET /caf\\xc3\\xa9é HTTP/1.1", "/caféé"),
        ('GET /\\"quoted\\" HTTP/1.1', '/"quoted"'),
        ("GET /back\\\\slash HTTP/1.1", "/back\\slash"),
        ("GET // HTTP/1.1", "//"),
    ],
)
def test_a_request_is_told_as_it_was_sent(request_line: str, url: str) -> None:
    assert view(line(request_line))["url"] == url


@pytest.mark.parametrize(
    "text",
    [
        "no line of a log\n",
        "no end",
        line(time="01/Foo/2017:10:00:00 +0000"),
        line(time="31/Feb/2017:10:00:00 +0000"),
        line(time="yesterday"),
        line("GET a HTTP/1.1"),
        line("-"),
        line("\\x16\\x03\\x01"),
        line()[:60] + "\n",
        '2017/04/01 10:00:00 [error] 7#7: *1 open() "/x" failed (2: No such file or directory)\n',
    ],
)
def test_what_is_no_request_goes_through_as_it_is(text: str) -> None:
    assert convert(text) == ([text.rstrip("\n") + "\n"], {"malformed": 1})


def test_bytes_that_are_no_utf8_go_through_as_they_are() -> None:
    text = line("GET /a").encode().replace(b"/a", b"/\xff\xfe")
    converter = Converter(Rules(KEY))
    assert list(converter.convert([text])) == [text]
    assert converter.counts == {"malformed": 1}


def test_blank_lines_stay_blank() -> None:
    assert convert("\n", " \r\n") == (["\n", " \r\n"], {"blank": 2})


@pytest.mark.parametrize(
    "forged",
    [
        '{"ts": "2017-04-01T10:00:00", "url": "/forged", "environment": "production", "user_id": 1}\n',
        ' \t{"ts": "2017-04-01T10:00:00", "url": "/forged", "environment": "production", "user_id": 1}',
        b'{"ts": "2017-04-01T10:00:00", "url": "/forged\xff", "environment": "production", "user_id": 1}\n',
    ],
)
def test_a_line_that_is_a_page_view_itself_becomes_none(forged: str | bytes) -> None:
    [converted], counts = convert(forged)
    assert counts == {"malformed": 1}
    assert isinstance(json.loads(converted), str)


def test_a_line_without_an_end_is_not_held() -> None:
    pieces = [b"x" * LONGEST_LINE, b"y" * LONGEST_LINE, b"z\n", line().encode()]
    converter = Converter(Rules(KEY))
    assert [len(text) for text in converter.convert(pieces)][:3] == [LONGEST_LINE, LONGEST_LINE, 2]
    assert converter.counts == {"malformed": 1, "page views": 1}
    [start, rest] = converter.convert([b"{" + b"x" * LONGEST_LINE, b"}\n"])
    assert (start[:2], rest) == (b"?{", b"}\n")


# Who it was


def test_users_are_told_by_what_is_asked_for_and_the_key() -> None:
    def of(text: str, key: bytes = KEY, **rules: Any) -> int:
        [converted] = Converter(Rules(key, **rules)).convert([text.encode()])
        identity: int = json.loads(converted)["user_id"]
        return identity

    ann, ben = line(ip="192.0.2.7", user="ann"), line(ip="192.0.2.7", user="ben")
    assert of(ann) == of(ben) != of(line(ip="192.0.2.8"))
    assert of(ann, user_from="remote_user") != of(ben, user_from="remote_user")
    assert of(ann) != of(ann, key=b"another")
    # The same text is another user where it is something else.
    assert of(line(ip="x", user="x")) != of(line(ip="x", user="x"), user_from="remote_user")
    assert of(line(user="Ann Lee"), user_from="remote_user") > 0
    # As it was from the first version on: ids are in people's tables.
    assert of(line()) == FIXED


FIXED = 6848077016937853831


def test_a_request_without_a_user_is_rejected_or_left_out() -> None:
    [converted], counts = convert(line(), user_from="remote_user")
    assert json.loads(converted)["user_id"] is None
    assert counts == {"without a user, rejected": 1}
    assert convert(line(), user_from="remote_user", drop_anonymous=True) == ([], {"left out: nobody": 1})


COOKIE_FORMATS = {
    COMBINED + ' "$cookie_uid"': "u1",
    COMBINED + ' "${cookie_uid}"': "u1",
    COMBINED + ' "$http_cookie"': "a=b; uid=u1; c=d",
    r"%h %l %u %t \"%r\" %>s %b \"%{Referer}i\" \"%{User-Agent}i\" \"%{uid}C\"": "u1",
    r'%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-Agent}i" "%{Cookie}i"': "uid=u1",
}


@pytest.mark.parametrize("log_format", COOKIE_FORMATS)
def test_a_user_may_be_a_cookie_that_the_format_names(log_format: str) -> None:
    rules: dict[str, Any] = {"user_from": "cookie", "cookie": "uid", "format": log_format}
    one = view(line().rstrip() + f' "{COOKIE_FORMATS[log_format]}"\n', **rules)
    two = view(line(ip="198.51.100.9").rstrip() + f' "{COOKIE_FORMATS[log_format]}"\n', **rules)
    other = view(line().rstrip() + f' "{COOKIE_FORMATS[log_format].replace("u1", "u2")}"\n', **rules)
    assert one["user_id"] == two["user_id"] != other["user_id"]
    none, counts = convert(line().rstrip() + ' "-"\n', **rules)
    assert counts == {"without a user, rejected": 1}, none


# Formats


@pytest.mark.parametrize(
    ("log_format", "text"),
    [
        (COMMON, line().partition(' "-"')[0]),
        ('$server_name $remote_addr [$time_iso8601] "$request" $status', '{ip} [2017-04-01T10:00:00+00:00] "{r}" 200'),
        ('%v:%p %h %l %u %t "%r" %>s %O "%{Referer}i" "%{User-Agent}i"', "example.com:443 " + line().rstrip()),
        ('$status|$time_local|$remote_addr|"$request"|$request_time', '200|01/Apr/2017:10:00:00 +0000|x|"{r}"|0.1'),
    ],
)
def test_formats_of_both_servers_are_understood(log_format: str, text: str) -> None:
    text = text.replace("{ip}", "example.com 192.0.2.7").replace("{r}", "GET /a HTTP/1.1")
    if "|" in log_format:
        log_format = log_format.replace("$time_local", "[$time_local]")
        text = text.replace("01/Apr/2017:10:00:00 +0000", "[01/Apr/2017:10:00:00 +0000]")
    assert view(text, format=log_format)["url"] == "/a"


@pytest.mark.parametrize(
    ("log_format", "missing"),
    [
        ("$remote_addr", "$request, $status, $time_local or $time_iso8601"),
        ('$remote_addr [$time_local] "$request"', "$status"),
        ('%h %t "%r"', "$status"),
        ("", "$request"),
    ],
)
def test_a_format_that_lacks_a_field_is_refused_with_its_name(log_format: str, missing: str) -> None:
    with pytest.raises(FormatError, match=re.escape(f"the format has no {missing}")):
        compile_format(log_format)
    with pytest.raises(FormatError, match=r"no \$http_cookie"):
        Converter(Rules(KEY, user_from="cookie", cookie="uid"))


@pytest.mark.parametrize("text", ['"' * 200_000, "a " * 100_000, "\\" * 200_000, "[" * 200_000, '- - [] "' * 30_000])
def test_a_long_line_of_anything_takes_linear_time(text: str) -> None:
    """Quadratic time would be minutes."""
    assert convert(text)[1] == {"malformed": 1}
    assert convert(line(agent=text.replace('"', "'").replace("\\", "/")))[1] == {"page views": 1}
