"""What makes a laptop enough: an embedded Postgres, sample logs, the `user-pipeline` command."""
