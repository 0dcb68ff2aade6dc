-- The role of workers on machines that you trust less than the service's: it takes tasks and delivers results.
-- It cannot read tokens, winners or jobs, and what has been measured it cannot change.
-- Run by the owner of the database after the service's first start, and again after an upgrade:
--     psql -v password=... -f worker_role.sql autotune
SELECT 'CREATE ROLE autotune_worker LOGIN' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'autotune_worker')
\gexec
ALTER ROLE autotune_worker WITH LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD :'password';
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM autotune_worker;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM autotune_worker;
GRANT USAGE ON SCHEMA public TO autotune_worker;
GRANT SELECT ON alembic_version TO autotune_worker;
GRANT SELECT, INSERT, UPDATE ON workers TO autotune_worker;
GRANT SELECT, UPDATE ON tasks TO autotune_worker;
GRANT SELECT, INSERT ON attempts TO autotune_worker;
-- What it measured, in the transaction that delivers it.
GRANT SELECT, INSERT ON devices, keys, measurements TO autotune_worker;
-- The queue: procrastinate's workers register, fetch, finish and listen.
GRANT SELECT, INSERT, UPDATE, DELETE ON procrastinate_jobs, procrastinate_events, procrastinate_workers,
  procrastinate_periodic_defers TO autotune_worker;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO autotune_worker;
