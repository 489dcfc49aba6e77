"""Hours of what may happen, against the oracle: ``make soak ARGS="--minutes 60 --seed 1"``. No part of CI."""

from collections import Counter

COUNTS: Counter[str] = Counter()
"""What happened since it was cleared, shrinking included."""
