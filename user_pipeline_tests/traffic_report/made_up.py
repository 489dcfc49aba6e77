"""A report of made-up numbers."""

from datetime import UTC, date, datetime, timedelta
from math import sin

from user_pipeline.traffic_report.report import Back, FeedAccount, Page, Quality, Report, Traffic

DAY = date(2017, 4, 15)
HOSTILE = [
    "/<script>document.title = 'taken'</script>",
    '/"><img src=x onerror="document.title = \'taken\'">',
    "/'onmouseover='document.title=1'</th></table><h1>taken</h1>",
    "/<svg onload=\"document.title='taken'\"><style>body{display:none}</style>",
    "/{{ 7 * 7 }}{% raw %}&lt;b&gt;",
]
URLS = ["/", "/products/916/", "/products/12/", "/search/?q=chairs", "/cart", "/blog/how-we-" + "very-" * 20 + "long"]


def traffic(number: int) -> Traffic:
    """A weekday more, a weekend less."""
    wave = 1 + 0.25 * sin(number * 0.9)
    views = int(18_000 * wave) + 210 * number
    return Traffic(views, int(views / 14), int(900 * wave), int(70 * wave) + number, int(6 + 5 * sin(number)))


def quality(number: int) -> Quality:
    rate = 0.21 + 0.03 * sin(number * 1.3)
    return Quality(412, rate, rate - 0.03, rate + 0.03, 0.16, 0.14, rate - 0.16, rate - 0.19, rate - 0.13)


def report(urls: list[str] | None = None) -> Report:
    days = [DAY - timedelta(days=ago) for ago in range(13, -1, -1)]
    urls = URLS if urls is None else urls
    pages = [Page(url, 2_400 - 310 * n, 700 - 90 * n, 2_100.0 - 300 * n) for n, url in enumerate(urls)]
    return Report(
        day=DAY,
        made_at=datetime(2017, 4, 16, 0, 34, tzinfo=UTC),
        days={each: None if number == 4 else traffic(number) for number, each in enumerate(days)},
        back_after_a_day=Back(1_402, 488),
        back_after_a_week=Back(3_911, 902),
        top=pages,
        rising=[*reversed(pages)][:5],
        min_viewers=3,
        feeds=[
            FeedAccount(
                "user_updates", 3, 4_210, 4_190, {"malformed": 6, "invalid_email": 4}, 10, 1_205, 1_102, 61, 42, 0, (),
            ),
            FeedAccount(
                "page_views", 12, 61_310, 61_211, {"malformed": 61, "missing_url": 30, "out_of_range": 8}, 0,
                21_480, 20_103, 911, 466, 388, ("referrer", "device"),
            ),
        ],
        quality={each: None if number < 2 else quality(number) for number, each in enumerate(days)},
    )  # fmt: skip
