"""One day's recommendations: history, snapshot, rules."""
