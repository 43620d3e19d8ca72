#!/bin/sh
# Run once, on an empty data folder: each database has a user of its own who sees no other.
set -eu
for name in mlflow lab; do
  psql --username postgres --dbname postgres --set ON_ERROR_STOP=1 --set name="$name" \
    --set password="$(cat "/run/secrets/coralline/$name-password")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
