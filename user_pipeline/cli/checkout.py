"""Checks of commands that start Dagster: its two files are in the working directory."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

_INSTANCE_CLASS = {"module": "user_pipeline.instance.checkout", "class": "CheckoutInstance"}


def require_checkout() -> None:
    """Refuse to go on anywhere but in a checkout.

    Raises:
        click.ClickException: workspace.yaml or dagster.yaml is missing.
    """
    missing = [name for name in ("workspace.yaml", "dagster.yaml") if not Path(name).is_file()]
    if missing:
        raise click.ClickException(
            f"There is no {' and no '.join(missing)} in {Path.cwd()}: run this in the root of the checkout."
        )


def require_guard() -> None:
    """Refuse another Dagster instance than ours: its web server would do what any web site asks of it.

    Raises:
        click.ClickException: dagster.yaml names no instance class, or another one.
    """
    import yaml

    path = Path(os.environ.get("DAGSTER_HOME") or Path.cwd(), "dagster.yaml")
    instance: Any = None
    with suppress(OSError, yaml.YAMLError):
        instance = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(instance, dict) or instance.get("instance_class") != _INSTANCE_CLASS:
        raise click.ClickException(
            f"{path} lacks the entry instance_class of the checkout's dagster.yaml: without it any web site could use "
            "the UI through your browser. Copy the entry, or unset DAGSTER_HOME."
        )
