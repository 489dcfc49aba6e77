"""The user-pipeline command."""
