"""The statements that run inside Postgres, one a file, in the order of their names."""
