-- The role of workers on machines that you trust less than the service's: it takes tasks and delivers results.
-- Run by the owner of the database after the service's first start, and again after an upgrade:
--     psql -v password=... -f worker_role.sql autotune
SELECT 'CREATE ROLE autotune_worker LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'autotune_worker')
\gexec
ALTER ROLE autotune_worker WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD :'password';
\ir rights.sql
