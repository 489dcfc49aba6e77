"""Ingest: the objects of the source."""
