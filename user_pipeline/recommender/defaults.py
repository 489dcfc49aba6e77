"""What can be chosen when recommendations are made, and what is chosen otherwise; imports nothing."""

NEIGHBOURS = 100
REGULARISATION = 20.0
