"""What assets reach the world through: object store, engine, Postgres."""
