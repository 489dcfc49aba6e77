"""Recommendations, and how good they were."""
