"""Exports: the tables as CSV."""
