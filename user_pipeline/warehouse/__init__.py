"""Postgres: replace a partition range, keep incremental tables exact."""
