from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
"""The directory of the project."""
