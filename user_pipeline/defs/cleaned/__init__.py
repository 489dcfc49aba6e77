"""Cleaned: production only, every event once."""
