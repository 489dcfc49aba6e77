"""Links from an asset in the UI to its code and to its page of the documentation.

Both are files of the checkout, which the UI opens in an editor. An installed package has no links.
"""

from pathlib import Path
from typing import Any

import dagster as dg

_CHECKOUT = Path(__file__).parents[2]
_DOCS = _CHECKOUT / "docs"
_PAGES = {
    **dict.fromkeys(("source", "ingest", "raw", "cleaned", "marts", "exports"), "assets.md"),
    "fake_users": "fake-users.md",
    "watch": "access.md",
    "traffic_report": "traffic-report.md",
    **dict.fromkeys(
        ("page_recommendations", "related_pages", "popular_pages", "recommendation_parameters"), "recommendations.md"
    ),
    "recommendation_quality": "recommendations.md",
    "page_recommendations_csv": "recommendations.md",
}
"""The page of each group, and of assets that are described on another page."""


def links(asset: str, group: str, code: Path | None = None, line: int = 1) -> dict[str, Any]:
    """The metadata entry that leads to an asset's code and documentation; none outside of a checkout.

    Args:
        asset: its name.
        group: its group.
        code: the module that makes it, if one does.
        line: where in it.
    """
    if not _DOCS.is_dir():
        return {}
    found: list[dg.LocalFileCodeReference | dg.UrlCodeReference] = []
    if code is not None:
        label = str(code.relative_to(_CHECKOUT)) if code.is_relative_to(_CHECKOUT) else code.name
        found.append(dg.LocalFileCodeReference(file_path=str(code), line_number=line, label=label))
    if page := _PAGES.get(asset, _PAGES.get(group)):
        found.append(dg.LocalFileCodeReference(file_path=str(_DOCS / page), line_number=1, label=f"docs/{page}"))
    return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=found)} if found else {}
