"""Where what the assets make is kept, and how it is read back."""
