"""Where assets are kept: Parquet in the lake, day-sliced tables in Postgres, files people open."""
