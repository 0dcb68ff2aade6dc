#!/bin/sh
# The entry point of the image `database`: makes the cluster when there is none, then becomes the server.
# Unix sockets for the containers beside it; TCP for workers on the host and beyond, with a password, and from outside of
# this container with TLS (self-signed: replace server.crt and server.key in the data directory by your own). libpq uses
# it unasked where a server has it.
# Three roles: autotune_owner owns the tables and migrates, autotune_service has their rows, autotune_worker what workers
# need (db/rights.sql). The superuser has no password and no way in but from within this container.
set -eu
data=${PGDATA:-/var/lib/postgresql/data}
sockets=${PGSOCKETS:-/run/postgresql}
port=${PGPORT:-5432}
programs=$(dirname "$(ls /usr/lib/postgresql/*/bin/postgres | tail -n 1)")

quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/''/g")"; }

if [ ! -s "$data/PG_VERSION" ]; then
  : "${OWNER_PASSWORD:?expected a password for the owner of the new database, found none: set OWNER_PASSWORD}"
  : "${SERVICE_PASSWORD:?expected a password for the service, found none: set SERVICE_PASSWORD}"
  : "${WORKER_PASSWORD:?expected a password for workers, found none: set WORKER_PASSWORD}"
  # Made beside it and moved into its place when it is whole: a kill in between leaves nothing half done, and what it
  # leaves, which the mark says is ours, is taken away.
  if [ -e "$data/.making" ]; then
    find "$data" -mindepth 1 ! -name .making -delete
  elif [ -n "$(ls -A "$data")" ]; then
    echo "expected an empty directory for the new database, found something in $data: empty it" >&2
    exit 1
  fi
  : >"$data/.making"
  new=$data/new
  umask 077
  mkdir "$new"
  "$programs/initdb" --pgdata="$new" --username=postgres --auth=reject --encoding=UTF8 --locale=C.UTF-8 \
    --data-checksums >/dev/null
  openssl req -new -x509 -days 3650 -nodes -subj /CN=autotune-database \
    -keyout "$new/server.key" -out "$new/server.crt" 2>/dev/null
  cat >"$new/pg_hba.conf" <<'RULES'
local   all      postgres              peer
local   autotune all                   scram-sha-256
host    all      postgres all          reject
host    autotune all      127.0.0.1/32 scram-sha-256
host    autotune all      ::1/128      scram-sha-256
hostssl autotune all      all          scram-sha-256
RULES
  # Single-user mode: one statement a line, and no server that anybody could reach before it is set up.
  "$programs/postgres" --single -D "$new" postgres >/dev/null <<STATEMENTS
CREATE ROLE autotune_owner LOGIN NOSUPERUSER PASSWORD $(quoted "$OWNER_PASSWORD")
CREATE ROLE autotune_service LOGIN NOSUPERUSER PASSWORD $(quoted "$SERVICE_PASSWORD")
CREATE ROLE autotune_worker LOGIN NOSUPERUSER PASSWORD $(quoted "$WORKER_PASSWORD")
CREATE DATABASE autotune OWNER autotune_owner
REVOKE ALL ON DATABASE autotune FROM PUBLIC
GRANT CONNECT ON DATABASE autotune TO autotune_service, autotune_worker
STATEMENTS
  version=$(cat "$new/PG_VERSION")
  rm "$new/PG_VERSION"
  mv "$new"/* "$data"/
  rmdir "$new"
  printf '%s\n' "$version" >"$data/PG_VERSION"
  rm "$data/.making"
fi
chmod 0700 "$data"
exec "$programs/postgres" -D "$data" -c listen_addresses="${PGLISTEN-*}" -c port="$port" \
  -c unix_socket_directories="$sockets" -c ssl=on -c log_min_messages=warning -c password_encryption=scram-sha-256
