"""Raw: each delivered row, by the day of its event."""
