"""Marts: the tables people query."""
