#!/bin/sh
# The entry point of the image `database`: makes the cluster when there is none, then becomes the server.
# Unix sockets for the containers beside it; TCP for workers on the host and beyond, with a password, and beyond this
# machine with TLS (self-signed: replace server.crt and server.key in the data directory by your own).
set -eu
data=${PGDATA:-/var/lib/postgresql/data}
sockets=${PGSOCKETS:-/run/postgresql}
port=${PGPORT:-5432}
programs=$(dirname "$(ls /usr/lib/postgresql/*/bin/postgres | tail -n 1)")

if [ ! -s "$data/PG_VERSION" ]; then
  : "${POSTGRES_PASSWORD:?expected a password for the new database, found none: set POSTGRES_PASSWORD}"
  # Made beside it and moved into its place when it is whole: a kill in between leaves nothing half done.
  new=$data/new
  rm -rf "$new"
  umask 077
  mkdir "$new"
  printf '%s\n' "$POSTGRES_PASSWORD" >"$data/password"
  "$programs/initdb" --pgdata="$new" --username=autotune --pwfile="$data/password" --auth=scram-sha-256 \
    --encoding=UTF8 --locale=C.UTF-8 --data-checksums >/dev/null
  rm "$data/password"
  openssl req -new -x509 -days 3650 -nodes -subj /CN=autotune-database \
    -keyout "$new/server.key" -out "$new/server.crt" 2>/dev/null
  printf 'host all all all scram-sha-256\n' >>"$new/pg_hba.conf"
  printf 'CREATE DATABASE autotune\n' | "$programs/postgres" --single -D "$new" postgres >/dev/null
  version=$(cat "$new/PG_VERSION")
  rm "$new/PG_VERSION"
  mv "$new"/* "$data"/
  rmdir "$new"
  printf '%s\n' "$version" >"$data/PG_VERSION"
fi
chmod 0700 "$data"
exec "$programs/postgres" -D "$data" -c listen_addresses='*' -c port="$port" -c unix_socket_directories="$sockets" \
  -c ssl=on -c log_min_messages=warning -c password_encryption=scram-sha-256
