"""Where assets are kept: Parquet in the lake, tables in Postgres, files that people open."""
