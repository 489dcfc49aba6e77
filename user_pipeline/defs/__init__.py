"""What Dagster shows: one folder a stage, in the order of the data flow."""
