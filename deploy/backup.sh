#!/bin/sh
# Dump the three databases into a directory, without stopping anything: backup.sh DIRECTORY
#
# The names dagster, staging and analytics are those of services in libpq's service file (PGSERVICEFILE, for instance
# sql/pg_service.conf beside this file; docs/deploy.md). No command line shows a password.
set -eu
directory=${1:?usage: backup.sh DIRECTORY}
umask 077
mkdir -p "$directory"
# Dagster's own first: it may then know less than the tables hold, and days that it does not know to be done are done
# again. The other way round it would take days for done that are missing. For the same reason the lake comes after.
for service in dagster staging analytics; do
    # Under another name until it is whole.
    pg_dump --format=custom --file="$directory/$service.partial" "service=$service"
    mv "$directory/$service.partial" "$directory/$service.dump"
done
