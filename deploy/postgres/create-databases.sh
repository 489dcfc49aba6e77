#!/bin/sh
# The databases, each of a role that owns it and nothing else. The image's entry point runs this once, on an empty
# volume, with POSTGRES_USER and POSTGRES_PASSWORD set; it can be run by hand against any server in the same way.
# The names are those of deploy/sql/roles.sql, which adds roles with fewer rights.
set -eu

# The passwords go in by the environment and psql's own quoting: no command line and no log shows them.
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv dagster_password DAGSTER_DB_PASSWORD
\getenv user_pipeline_password USER_PIPELINE_DB_PASSWORD
-- A failing statement must not leave a password in the server's log.
set log_min_error_statement = panic;
set log_statement = none;
create role user_pipeline_dagster login password :'dagster_password';
create role user_pipeline_owner login password :'user_pipeline_password';
create database dagster owner user_pipeline_dagster;
create database staging owner user_pipeline_owner;
create database analytics owner user_pipeline_owner;
-- By default everyone may connect to everything.
revoke connect on database dagster, staging, analytics from public;
SQL
