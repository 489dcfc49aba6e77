"""Fake users, from generation to report: pure functions, the time and every path are arguments."""
