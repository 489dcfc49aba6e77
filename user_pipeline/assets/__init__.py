"""The assets: what is made, in a few lines each."""
