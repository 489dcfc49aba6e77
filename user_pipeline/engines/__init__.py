"""What runs transforms: the engine that the settings choose."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from user_pipeline.engines.base import Engine
    from user_pipeline.settings import Settings


def open_engine(settings: "Settings") -> "Engine":
    """The engine that ``USER_PIPELINE_ENGINE`` names.

    Nothing is connected before it is used.
    """
    if settings.engine == "spark":
        from user_pipeline.engines.spark import SparkEngine

        return SparkEngine(settings)
    from user_pipeline.engines.duckdb import Engine

    return Engine(settings)
