"""From objects in the source to part files in the lake: every object read once, every line accounted for."""
