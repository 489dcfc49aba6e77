#!/bin/sh
# Databases and roles (roles.sql beside this file), and the passwords of the roles that docker-compose.yaml uses. libpq's
# variables say where and as whom: PGHOST, PGUSER, PGPASSWORD. Doing it again changes nothing but what is another
# password now. The role analyst gets none here: psql's \password sets it.
set -eu
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname postgres --file "$(dirname "$0")/roles.sql"

# The passwords go in by the environment and psql's own quoting: no command line and no log shows them.
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname postgres <<'SQL'
\getenv dagster_password DAGSTER_DB_PASSWORD
\getenv owner_password OWNER_DB_PASSWORD
\getenv writer_password WRITER_DB_PASSWORD
-- A failing statement must not leave a password in the server's log.
set log_min_error_statement = panic;
set log_statement = none;
alter role user_pipeline_dagster password :'dagster_password';
alter role user_pipeline_owner password :'owner_password';
alter role user_pipeline_writer password :'writer_password';
SQL
