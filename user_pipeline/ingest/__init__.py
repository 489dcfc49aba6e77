"""From objects in the source to fragments in the lake: every object read once, every line accounted for."""
