"""What the tests of several files of ``deploy/`` ask."""

import re
from typing import Any

import pytest

from user_pipeline.settings import Settings
from user_pipeline_tests.deployment import DEPLOY

# Where what is embedded lives; the image embeds nothing.
NOT_DEPLOYED = {"USER_PIPELINE_DATA_DIR"}


class Asked(dict[str, str]):
    """An empty environment that knows which variables it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return default


@pytest.fixture(scope="session")
def settings_asked() -> set[str]:
    """Every variable that the settings are read from, but for what the image sets itself."""
    asked = Asked()
    Settings.from_environment(asked)
    assert len(asked.names) >= 14
    image = set(re.findall(r"\b([A-Z_]+)=", (DEPLOY / "Dockerfile").read_text().rpartition("\nFROM ")[2]))
    assert "USER_PIPELINE_SCRATCH_DIR" in image
    return asked.names - image - NOT_DEPLOYED
