#!/bin/sh
# Put what backup.sh dumped in the place of what is there: restore.sh DIRECTORY
#
# Run sql/roles.sql before: the databases and roles have to exist, and what is restored gets the rights that it grants.
# What else is in the databases stays. Nothing may be connected: stop the web server, the daemon, the code server and
# runs first. Each database is restored in one transaction: wholly or not at all.
set -eu
directory=${1:?usage: restore.sh DIRECTORY}
for service in dagster staging analytics; do
    [ -f "$directory/$service.dump" ] || { echo "there is no $directory/$service.dump" >&2; exit 1; }
done
list=$(mktemp)
trap 'rm -f "$list"' EXIT
for service in dagster staging analytics; do
    # Without the schema pipeline itself: made anew, it would lose the rights that roles.sql has granted.
    pg_restore --list "$directory/$service.dump" | grep -v ' SCHEMA - pipeline ' >"$list"
    pg_restore --clean --if-exists --no-owner --no-acl --single-transaction --exit-on-error \
        --use-list="$list" --dbname="service=$service" "$directory/$service.dump"
done
