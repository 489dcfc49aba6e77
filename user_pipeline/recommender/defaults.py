"""What can be chosen when recommendations are made, and what is chosen otherwise; imports nothing."""

# How many pages a page is predicted from at most, where not all of them can be.
NEIGHBOURS = 150
# The ridge penalty, in squared views.
REGULARISATION = 20.0
# Bytes to work in, beside the views and their transpose.
MEMORY_LIMIT = 2**30
