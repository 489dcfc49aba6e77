"""The files of the lake: where they are, and how they come to this machine."""
