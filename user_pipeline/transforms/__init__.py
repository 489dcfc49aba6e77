"""Pure functions on lazy frames: no Dagster, no input or output, no clock."""
