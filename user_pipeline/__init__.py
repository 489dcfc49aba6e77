"""A Dagster asset platform that turns a web application's daily logs into tables people query."""
