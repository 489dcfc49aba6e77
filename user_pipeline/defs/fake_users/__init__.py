"""The fake-user pipeline."""
