"""Which pages may be shown to people who have not been there.

A url may belong to one person: it may hold a token, or be a page of an account. So a page is recommended only if enough
users have viewed it, and if the rules about urls allow it. Nothing is learned from the views of other pages.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

    from user_pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class Eligibility:
    """The conditions for a page to be shown.

    Attributes:
        min_viewers: how many users at least have viewed it in the window.
        urls: a regular expression that must be found in its url; None for any url.
        exclude_urls: a regular expression that must not be found in it; None for no such rule.
    """

    min_viewers: int
    urls: str | None = None
    exclude_urls: str | None = None

    @classmethod
    def by(cls, settings: "Settings") -> "Eligibility":
        """What the settings say."""
        return cls(
            settings.recommendation_min_viewers, settings.recommendation_urls, settings.recommendation_exclude_urls
        )

    @property
    def has_rules(self) -> bool:
        """Whether anything but the number of viewers decides."""
        return self.urls is not None or self.exclude_urls is not None

    def allowed(self, urls: Iterable[str]) -> Iterator[bool]:
        """Whether each url passes the rules about urls."""
        wanted, unwanted = (pattern and re.compile(pattern) for pattern in (self.urls, self.exclude_urls))
        for url in urls:
            yield not (wanted and not wanted.search(url)) and not (unwanted and unwanted.search(url))


def keep_allowed(connection: "duckdb.DuckDBPyConnection", table: str, eligibility: Eligibility) -> None:
    """Delete from a table the rows whose ``url`` does not pass the rules about urls."""
    if not eligibility.has_rules:
        return
    import pyarrow as pa

    # With Python's regular expressions, as the settings were checked with them: the engine has another syntax.
    urls = connection.sql(f"select url from {table}").to_arrow_table().column(0)
    refused = pa.array([not is_allowed for is_allowed in eligibility.allowed(map(str, urls))], pa.bool_())
    connection.register("refused", pa.table({"url": urls.filter(refused)}))
    connection.execute(f"delete from {table} where url in (select url from refused)")
    connection.unregister("refused")
