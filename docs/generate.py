"""Write the parts of the documentation that the code knows best: docs/assets.md, and the table of docs/settings.md.

Run it after a change of assets or settings (`make docs` does); a test compares what is there with what it would write.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from user_pipeline.definitions import defs
from user_pipeline.settings import Settings, variable_of

DOCS = Path(__file__).parent
_GROUPS = {
    "source": "What the application delivers. Nothing here is materialized: the sensor `new_logs` observes it.",
    "ingest": "Objects of the source, each read once. Not partitioned: a run reads what is new or changed.",
    "raw": "A day as it was delivered.",
    "cleaned": "A day's events in production, each once, in the lake and in the staging database.",
    "marts": """What people query, in the analytics database; what each day adds is in the lake.

A user's latest update is the one with the greatest `updated_at`; of several the one with the greatest `email`, then
`name`. `email` in `user_page_views` is null for a user without a valid update in production. `count` is the number of
distinct page views, `last_viewed` the latest of them.""",
    "exports": """Files for people, in the lake as `exports/<table>/date=YYYY-MM-DD/<table>.csv`: the table as it stands
after the run. A range of days writes it for each of its days.""",
    "fake_users": "The second pipeline. See [fake users](fake-users.md).",
}
_BEGIN, _END = "<!-- generated: the settings -->", "<!-- end -->"


def assets_page() -> str:
    """Every asset with its columns and checks, by group."""
    specs = sorted(defs.resolve_all_asset_specs(), key=lambda spec: spec.key.to_user_string())
    groups = {spec.group_name for spec in specs}
    if unknown := groups - _GROUPS.keys():
        raise ValueError(f"docs/generate.py says nothing of the groups {sorted(map(str, unknown))}")
    lines = [
        "# Assets",
        "",
        "All are partitioned by day (UTC) unless it says otherwise; a range of days is one run. Timestamps are UTC",
        "without time zone. This page is written by `docs/generate.py` from the definitions.",
    ]
    for group, meaning in _GROUPS.items():
        lines += ["", f"## {group}", "", meaning]
        for spec in specs:
            if spec.group_name == group:
                lines += _asset(spec)
    return "\n".join(lines) + "\n"


def _asset(spec: dg.AssetSpec) -> Iterator[str]:
    yield from ("", f"### {spec.key.to_user_string()}", "")
    yield re.sub(r"\n(?!\n)", " ", spec.description or "").replace("  ", "\n\n").strip()
    schema = spec.metadata.get("dagster/column_schema")
    if isinstance(schema, dg.TableSchema):
        yield from ("", "| column | type | |", "|---|---|---|")
        for column in schema.columns:
            yield f"| `{column.name}` | {column.type} | {_cell(column.description or '')} |"
    checks = sorted(
        (check for each in defs.asset_checks or () for check in each.check_specs if check.asset_key == spec.key),
        key=lambda check: check.name,
    )
    if checks:
        yield from ("", "| check | |", "|---|---|")
        for check in checks:
            stops = "Stops what comes after it. " if check.blocking else ""
            yield f"| `{check.name}` | {stops}{_cell(check.description or '')} |"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


def settings_table() -> str:
    """Every setting, what it means, and its default."""
    lines = ["| variable | meaning | default |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = f"`{field.default}`" if field.default else "none"
        lines.append(f"| `{variable_of(name)}` | {_cell(field.description or '')} | {default} |")
    return "\n".join(lines)


def settings_page() -> str:
    """docs/settings.md with the table of today."""
    before, begin, rest = (DOCS / "settings.md").read_text(encoding="utf-8").partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"docs/settings.md lacks {_BEGIN} or {_END}")
    return f"{before}{begin}\n\n{settings_table()}\n\n{end}{after}"


PAGES = {"assets.md": assets_page, "settings.md": settings_page}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
