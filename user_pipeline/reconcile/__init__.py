"""Compare the tables with a full recompute, and repair them."""
