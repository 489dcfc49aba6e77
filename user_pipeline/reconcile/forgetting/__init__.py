"""Take people out of all that is stored."""
