"""Tests of access logs as page views."""
