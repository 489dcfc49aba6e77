"""What runs transforms."""
