#!/bin/sh
# Before the services of a new version start: Dagster's tables, made or brought up to date, and the pools' limits.
# Doing it again changes nothing.
set -eu
dagster instance migrate
# So many steps write to one database at once. Writers of one table wait for each other inside Postgres anyway; this
# bounds what the others ask of it. Set here, because pools.default_limit of dagster.yaml makes runs fail that are the
# first to use a pool at the same time (https://github.com/dagster-io/dagster/issues/33552).
for pool in staging_database analytics_database; do
    dagster instance concurrency set "$pool" 2
done
