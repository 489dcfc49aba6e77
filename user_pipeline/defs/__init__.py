"""What Dagster shows: one folder a stage, in the order of the data flow."""

import warnings

import dagster as dg

from user_pipeline import short_errors

# Before anything that may be wrong is loaded.
short_errors.install()

# Features of Dagster that may still change and are used knowingly: without this, every command prints pages of it. What
# Dagster says of others is shown.
for _feature, _category in (
    # A range of days is one run.
    ("Parameter `backfill_policy` of function `asset` ", dg.BetaWarning),
    # A check of a day looks at that day.
    ("Specifying a partitions_def on an AssetCheckSpec ", dg.PreviewWarning),
    # The first day has no day before it.
    ("Parameter `allow_nonexistent_upstream_partitions` ", dg.BetaWarning),
    # Dagster's own way to find the assets of a group.
    ("Parameter `include_sources` of function `AssetSelection.groups` ", dg.BetaWarning),
    # Links from assets to their code and documentation.
    ("Class `LocalFileCodeReference` ", dg.BetaWarning),
    ("Class `CodeReferencesMetadataValue` ", dg.BetaWarning),
    # How the folder is loaded: both functions, and no other that begins so.
    ("Function `load_definitions_from_modules?` ", dg.PreviewWarning),
):
    warnings.filterwarnings("ignore", message=_feature, category=_category)
