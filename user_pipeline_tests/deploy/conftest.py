"""What the tests of several files of ``deploy/`` ask."""

import re

import pytest

from user_pipeline.settings import Settings, variable_of
from user_pipeline_tests.deployment import DEPLOY

# Where what is embedded lives; the image embeds nothing.
NOT_DEPLOYED = {"USER_PIPELINE_DATA_DIR"}


@pytest.fixture(scope="session")
def settings_asked() -> set[str]:
    """Every variable that the settings are read from, but for what the image sets itself."""
    asked = {variable_of(field) for field in Settings.model_fields}
    image = set(re.findall(r"\b([A-Z_]+)=", (DEPLOY / "Dockerfile").read_text().rpartition("\nFROM ")[2]))
    assert "USER_PIPELINE_SCRATCH_DIR" in image
    return asked - image - NOT_DEPLOYED
