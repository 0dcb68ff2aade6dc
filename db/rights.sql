-- Who may do what, where several roles use the database. Run by its owner, after each migration: `autotune migrate`.
-- Roles that do not exist get nothing; db/worker_role.sql makes the workers', db/server/postgresql.sh all of them.

-- The service: every row of ours, no table, and nothing of other programs beside us.
DO $$
DECLARE
  ours text[] := ARRAY(
    SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND (
      relname LIKE 'procrastinate\_%' OR relname IN (
        'attempts', 'changes', 'devices', 'job_keys', 'jobs', 'keys', 'measurements', 'probe', 'tasks', 'tokens',
        'winners', 'workers')));
  name text;
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'autotune_service') THEN
    GRANT USAGE ON SCHEMA public TO autotune_service;
    GRANT SELECT ON alembic_version, lookup_v1 TO autotune_service;
    FOREACH name IN ARRAY ours LOOP
      EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO autotune_service', name);
    END LOOP;
    FOR name IN
      SELECT numbers.relname FROM pg_class numbers
      JOIN pg_depend ON pg_depend.objid = numbers.oid AND pg_depend.deptype IN ('a', 'i')
      JOIN pg_class numbered ON numbered.oid = pg_depend.refobjid
      WHERE numbers.relkind = 'S' AND numbers.relnamespace = 'public'::regnamespace AND numbered.relname = ANY (ours)
    LOOP
      EXECUTE format('GRANT USAGE, SELECT ON SEQUENCE %I TO autotune_service', name);
    END LOOP;
  END IF;
END $$;

-- Workers: they take tasks and deliver results. They read no tokens, winners or jobs, and change nothing measured.
DO $$
BEGIN
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'autotune_worker') THEN
    -- Who has no tables of their own can put none in the way of ours: temporary ones are searched first.
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC, autotune_worker', current_database());
    REVOKE ALL ON devices, keys, tasks, attempts, workers, measurements FROM autotune_worker;
    GRANT USAGE ON SCHEMA public TO autotune_worker;
    GRANT SELECT ON alembic_version, devices, keys, tasks, attempts, workers TO autotune_worker;
    GRANT INSERT, UPDATE (seen_at, in_use, unfit, ended_at) ON workers TO autotune_worker;
    GRANT UPDATE (state, attempt, worker, changed_at, waiting, lost) ON tasks TO autotune_worker;
    GRANT INSERT ON attempts TO autotune_worker;
    GRANT SELECT (id), INSERT ON measurements TO autotune_worker;
    GRANT USAGE ON SEQUENCE workers_id_seq, measurements_id_seq TO autotune_worker;
    -- The queue: procrastinate's workers register, fetch, finish and listen; a task that is given back is queued anew.
    GRANT SELECT, INSERT, UPDATE, DELETE ON procrastinate_jobs, procrastinate_events, procrastinate_workers,
      procrastinate_periodic_defers TO autotune_worker;
    GRANT USAGE ON SEQUENCE procrastinate_jobs_id_seq, procrastinate_events_id_seq, procrastinate_workers_id_seq,
      procrastinate_periodic_defers_id_seq TO autotune_worker;
  END IF;
END $$;

-- Row by row: who may not change measurements (a worker) may add one only as the result of the attempt that it is
-- delivering, for the key that it was asked about; and an attempt counts only while it is the current one of its task.
-- Not row-level security: pg_dump refuses tables that have it to whoever does not own them.
-- The functions run as whoever inserts, and look at these tables, whatever that session's search_path or temporary tables.
CREATE OR REPLACE FUNCTION expect_delivered() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF has_table_privilege(current_user, 'public.measurements', 'UPDATE') THEN
    RETURN NEW;
  END IF;
  PERFORM FROM public.tasks JOIN public.attempts ON attempts.task_id = tasks.id AND attempts.attempt = tasks.attempt
    JOIN public.keys ON keys.digest = tasks.key_digest
    WHERE tasks.state IN ('queued', 'running') AND attempts.counted AND keys.id = NEW.key_id
      AND strpos(attempts.result, '"attempt":"' || NEW.attempt || '"') > 0;
  IF NOT FOUND THEN
    RAISE insufficient_privilege USING
      MESSAGE = 'permission denied: a measurement of no attempt that ' || current_user || ' is delivering';
  END IF;
  RETURN NEW;
END $$;

CREATE OR REPLACE FUNCTION expect_current() RETURNS trigger LANGUAGE plpgsql
  SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
  IF NOT NEW.counted OR has_table_privilege(current_user, 'public.attempts', 'UPDATE') THEN
    RETURN NEW;
  END IF;
  PERFORM FROM public.tasks WHERE id = NEW.task_id AND attempt = NEW.attempt AND worker = NEW.worker AND state = 'running';
  IF NOT FOUND THEN
    RAISE insufficient_privilege USING MESSAGE = 'permission denied: an attempt that is not the current one of its task';
  END IF;
  RETURN NEW;
END $$;

CREATE OR REPLACE TRIGGER measurements_delivered BEFORE INSERT ON measurements
  FOR EACH ROW EXECUTE FUNCTION expect_delivered();
CREATE OR REPLACE TRIGGER attempts_current BEFORE INSERT ON attempts
  FOR EACH ROW EXECUTE FUNCTION expect_current();
