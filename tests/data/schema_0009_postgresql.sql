SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
CREATE FUNCTION public.count_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN UPDATE changes SET count = count + 1; RETURN NULL; END $$;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.attempts (
    task_id integer NOT NULL,
    attempt integer NOT NULL,
    worker text NOT NULL,
    counted boolean NOT NULL,
    result text NOT NULL,
    error text NOT NULL,
    ended_at double precision NOT NULL
);
CREATE TABLE public.changes (
    id integer NOT NULL,
    count bigint NOT NULL
);
CREATE TABLE public.devices (
    id integer NOT NULL,
    digest character varying(32) NOT NULL,
    identity character varying(32) NOT NULL,
    name text NOT NULL,
    spec text NOT NULL
);
CREATE SEQUENCE public.devices_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.devices_id_seq OWNED BY public.devices.id;
CREATE TABLE public.job_keys (
    job_id integer NOT NULL,
    "position" integer NOT NULL,
    key_id integer NOT NULL,
    body text NOT NULL,
    target character varying(16) DEFAULT ''::character varying NOT NULL,
    state character varying(16) DEFAULT 'queued'::character varying NOT NULL,
    owner text DEFAULT ''::text NOT NULL,
    error text DEFAULT ''::text NOT NULL,
    seen_at double precision
);
CREATE TABLE public.jobs (
    id integer NOT NULL,
    name character varying(32) NOT NULL,
    keys_digest character varying(32) NOT NULL,
    state character varying(16) NOT NULL,
    budget text NOT NULL,
    done_keys integer NOT NULL,
    progress text NOT NULL,
    error text NOT NULL,
    created_at double precision NOT NULL,
    started_at double precision,
    ended_at double precision,
    priority integer DEFAULT 0 NOT NULL,
    deadline double precision,
    idle boolean DEFAULT false NOT NULL,
    retry_of text DEFAULT ''::text NOT NULL,
    submitter text DEFAULT ''::text NOT NULL
);
CREATE SEQUENCE public.jobs_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.jobs_id_seq OWNED BY public.jobs.id;
CREATE TABLE public.keys (
    id integer NOT NULL,
    digest character varying(32) NOT NULL,
    device_id integer NOT NULL,
    shape text NOT NULL,
    policy text NOT NULL,
    dtype character varying(16) NOT NULL,
    batch integer NOT NULL,
    cin integer NOT NULL,
    cout integer NOT NULL,
    groups integer NOT NULL,
    spatial character varying(64) NOT NULL,
    kernel character varying(64) NOT NULL
);
CREATE SEQUENCE public.keys_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.keys_id_seq OWNED BY public.keys.id;
CREATE TABLE public.winners (
    id integer NOT NULL,
    key_id integer NOT NULL,
    device_id integer NOT NULL,
    is_current boolean NOT NULL,
    state character varying(16) NOT NULL,
    decided_at double precision NOT NULL,
    candidate text NOT NULL,
    body text NOT NULL
);
CREATE VIEW public.lookup_v1 AS
 SELECT keys.digest AS key_digest,
    winners.state,
    winners.candidate,
    winners.body AS winner,
    winners.decided_at
   FROM (public.winners
     JOIN public.keys ON ((keys.id = winners.key_id)))
  WHERE winners.is_current;
CREATE TABLE public.measurements (
    id integer NOT NULL,
    attempt text NOT NULL,
    key_id integer NOT NULL,
    device_id integer NOT NULL,
    status character varying(16) NOT NULL,
    candidate character varying(16) NOT NULL,
    measured_at double precision NOT NULL,
    body text NOT NULL
);
CREATE SEQUENCE public.measurements_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.measurements_id_seq OWNED BY public.measurements.id;
CREATE TABLE public.probe (
    id integer NOT NULL,
    count bigint NOT NULL
);
CREATE TABLE public.tasks (
    id integer NOT NULL,
    name character varying(32) NOT NULL,
    queue text NOT NULL,
    digest character varying(32) NOT NULL,
    request text NOT NULL,
    state character varying(16) NOT NULL,
    attempt integer NOT NULL,
    worker text NOT NULL,
    created_at double precision NOT NULL,
    changed_at double precision NOT NULL,
    key_digest character varying(32) DEFAULT ''::character varying NOT NULL,
    idle boolean DEFAULT false NOT NULL,
    release text DEFAULT ''::text NOT NULL,
    waiting text DEFAULT ''::text NOT NULL,
    lost text DEFAULT '[]'::text NOT NULL
);
CREATE SEQUENCE public.tasks_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.tasks_id_seq OWNED BY public.tasks.id;
CREATE TABLE public.tokens (
    id integer NOT NULL,
    name text NOT NULL,
    digest character varying(64) NOT NULL,
    scope character varying(16) NOT NULL,
    created_at double precision NOT NULL,
    expires_at double precision,
    revoked_at double precision
);
CREATE SEQUENCE public.tokens_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.tokens_id_seq OWNED BY public.tokens.id;
CREATE SEQUENCE public.winners_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.winners_id_seq OWNED BY public.winners.id;
CREATE TABLE public.workers (
    id integer NOT NULL,
    name text NOT NULL,
    device text NOT NULL,
    about text NOT NULL,
    in_use boolean NOT NULL,
    started_at double precision NOT NULL,
    seen_at double precision NOT NULL,
    ended_at double precision,
    unfit text DEFAULT ''::text NOT NULL
);
CREATE SEQUENCE public.workers_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.workers_id_seq OWNED BY public.workers.id;
ALTER TABLE ONLY public.devices ALTER COLUMN id SET DEFAULT nextval('public.devices_id_seq'::regclass);
ALTER TABLE ONLY public.jobs ALTER COLUMN id SET DEFAULT nextval('public.jobs_id_seq'::regclass);
ALTER TABLE ONLY public.keys ALTER COLUMN id SET DEFAULT nextval('public.keys_id_seq'::regclass);
ALTER TABLE ONLY public.measurements ALTER COLUMN id SET DEFAULT nextval('public.measurements_id_seq'::regclass);
ALTER TABLE ONLY public.tasks ALTER COLUMN id SET DEFAULT nextval('public.tasks_id_seq'::regclass);
ALTER TABLE ONLY public.tokens ALTER COLUMN id SET DEFAULT nextval('public.tokens_id_seq'::regclass);
ALTER TABLE ONLY public.winners ALTER COLUMN id SET DEFAULT nextval('public.winners_id_seq'::regclass);
ALTER TABLE ONLY public.workers ALTER COLUMN id SET DEFAULT nextval('public.workers_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('0009');
INSERT INTO public.attempts VALUES (1, 1, 'w', true, '[{"attempt":"delivered","candidate":{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"},"compile_s":0.0,"conditions":{},"error":1e-06,"error_bound":null,"fingerprint":"","kernels":[{"bytes":0,"device":"CPU","median_s":null,"name":"r_64","ops":7,"source_bytes":0}],"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":32,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"measured_at":1000.0,"reason":"","status":"ok","times_s":[0.001,0.0011],"workspace_bytes":0,"yardstick_times_s":[0.002,0.0021]}]', '', 1000);
INSERT INTO public.changes VALUES (1, 10);
INSERT INTO public.devices VALUES (1, '6a4469a8f7db3ff1dc8efb7e86ba362a', '031d1ebb7fcbfaa365593f21bda7a048', 'CPU', '{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"}');
INSERT INTO public.job_keys VALUES (1, 0, 1, '{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":64,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1}', '9ae8343d97231a59', 'done', 'old', '', 1000);
INSERT INTO public.job_keys VALUES (2, 1, 2, '{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":8,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1}', '9ae8343d97231a59', 'queued', '', '', NULL);
INSERT INTO public.job_keys VALUES (2, 0, 1, '{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":64,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1}', '9ae8343d97231a59', 'running', 'killed', '', 1000);
INSERT INTO public.job_keys VALUES (3, 0, 3, '{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":16,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1}', '9ae8343d97231a59', 'queued', '', '', NULL);
INSERT INTO public.jobs VALUES (1, 'b396262ed4c24eaa9ddfe413fbfe8bdb', '6d77f37518d3517d6ebc07804c4f2b27', 'done', '{"seconds":null,"trials":3}', 1, '{"digest":"584ad16935d053517b776cb932461e04","key":"1x64x56x56 64x64x3x3 padding 1 on CPU"}', '', 1000, 1000, 1000, 0, NULL, false, '', '');
INSERT INTO public.jobs VALUES (2, '64050a30cc534befb3e8da3d1bc9a9b3', '49179a6adad75fd7ae69fa1ef1e0f5f7', 'running', '{"seconds":60.0,"trials":null}', 0, '{}', '', 1000, 1000, NULL, 0, NULL, false, '', '');
INSERT INTO public.jobs VALUES (3, 'ef5ab082de0742fc8c48f88d92fee42c', '6be2be7322086fdd9545365153dc933e', 'queued', '{"seconds":null,"trials":1}', 0, '{}', '', 1000, NULL, NULL, -1, NULL, false, '', 'token:1');
INSERT INTO public.keys VALUES (1, '584ad16935d053517b776cb932461e04', 1, '{"acc_dtype":"float32","batch":1,"cin":64,"cout":64,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]}', '{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null}', 'float32', 1, 64, 64, 1, '56x56', '3x3');
INSERT INTO public.keys VALUES (2, 'c1d63fa16513c5abcb799493d0b20e00', 1, '{"acc_dtype":"float32","batch":1,"cin":64,"cout":8,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]}', '{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null}', 'float32', 1, 64, 8, 1, '56x56', '3x3');
INSERT INTO public.keys VALUES (3, '0b1caa1788f68c3e73a556348fa617bc', 1, '{"acc_dtype":"float32","batch":1,"cin":64,"cout":16,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]}', '{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null}', 'float32', 1, 64, 16, 1, '56x56', '3x3');
INSERT INTO public.keys VALUES (4, '2b8dc910ee6b64fb371a0337071a4b46', 1, '{"acc_dtype":"float32","batch":1,"cin":64,"cout":32,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]}', '{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null}', 'float32', 1, 64, 32, 1, '56x56', '3x3');
INSERT INTO public.measurements VALUES (1, 'one', 1, 1, 'ok', 'e874dc0cb082f22e', 1, '{"attempt":"one","candidate":{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"},"compile_s":0.0,"conditions":{},"error":1e-06,"error_bound":null,"fingerprint":"","kernels":[{"bytes":0,"device":"CPU","median_s":null,"name":"r_64","ops":7,"source_bytes":0}],"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":64,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"measured_at":1.0,"reason":"","status":"ok","times_s":[0.001,0.0011],"workspace_bytes":0,"yardstick_times_s":[0.002,0.0021]}');
INSERT INTO public.measurements VALUES (2, 'two', 2, 1, 'ok', 'e874dc0cb082f22e', 2, '{"attempt":"two","candidate":{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"},"compile_s":0.0,"conditions":{},"error":1e-06,"error_bound":null,"fingerprint":"","kernels":[{"bytes":0,"device":"CPU","median_s":null,"name":"r_64","ops":7,"source_bytes":0}],"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":8,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"measured_at":2.0,"reason":"","status":"ok","times_s":[0.001,0.0011],"workspace_bytes":0,"yardstick_times_s":[0.002,0.0021]}');
INSERT INTO public.measurements VALUES (3, 'delivered', 4, 1, 'ok', 'e874dc0cb082f22e', 1000, '{"attempt":"delivered","candidate":{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"},"compile_s":0.0,"conditions":{},"error":1e-06,"error_bound":null,"fingerprint":"","kernels":[{"bytes":0,"device":"CPU","median_s":null,"name":"r_64","ops":7,"source_bytes":0}],"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":32,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"measured_at":1000.0,"reason":"","status":"ok","times_s":[0.001,0.0011],"workspace_bytes":0,"yardstick_times_s":[0.002,0.0021]}');
INSERT INTO public.probe VALUES (1, 1);
INSERT INTO public.tasks VALUES (2, 'ce1e3bbabf474efa8e850c1d3870427e', 'q', '1ba294d7d61ae561a5a3da5a6d5f9e7f', '{"candidates":[{"kernel_options":{},"params":{},"strategy":"direct"}],"hints":[],"hopeless":2.0,"keep":0,"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":32,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"limits":{"lowering_s":10.0,"memory_bytes":null,"prepare_s":60.0,"run_s":30.0},"options":null,"race":false,"round_s":0.02,"rounds":2,"seed":0}', 'queued', 1, '', 1000, 1000, '2b8dc910ee6b64fb371a0337071a4b46', false, '0.1.0', '', '[]');
INSERT INTO public.tasks VALUES (1, '99e28b3d0645433d9e3af0243fc5aa7d', 'q', 'f535ef42491f98f4bfa7754a1a193b39', '{"candidates":[{"kernel_options":{},"params":{},"strategy":"direct"}],"hints":[],"hopeless":2.0,"keep":0,"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":32,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"limits":{"lowering_s":10.0,"memory_bytes":null,"prepare_s":60.0,"run_s":30.0},"options":null,"race":false,"round_s":0.02,"rounds":1,"seed":0}', 'done', 1, 'w', 1000, 1000, '2b8dc910ee6b64fb371a0337071a4b46', false, '0.1.0', '', '[]');
INSERT INTO public.tokens VALUES (1, 'me', '2ec9b95d4457fb23d1ad824188789531b62cc7054b0b6ab017b09f661092aa03', 'tune', 1000, NULL, NULL);
INSERT INTO public.winners VALUES (1, 1, 1, false, 'verified', 1, '{"kernel_options":{},"params":{"tile":2},"strategy":"hybrid_grid"}', '{"candidate":{"kernel_options":{},"params":{"tile":2},"strategy":"hybrid_grid"},"decided_at":1.0,"default":{"kernel_options":{},"params":{},"strategy":"direct"},"default_time_s":[0.002,0.0019,0.0021],"error":1e-06,"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":64,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"provenance":{"host":"here","trials":12},"ratio":[0.5,0.45,0.55],"state":"verified","time_s":[0.001,0.0009,0.0011],"times_s":{"direct":0.002},"workspace_bytes":1048576}');
INSERT INTO public.winners VALUES (2, 1, 1, true, 'verified', 2, '{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"}', '{"candidate":{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"},"decided_at":2.0,"default":{"kernel_options":{},"params":{},"strategy":"direct"},"default_time_s":[0.002,0.0019,0.0021],"error":1e-06,"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":64,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"provenance":{"host":"here","trials":12},"ratio":[0.5,0.45,0.55],"state":"verified","time_s":[0.001,0.0009,0.0011],"times_s":{"direct":0.002},"workspace_bytes":1048576}');
INSERT INTO public.winners VALUES (3, 2, 1, true, 'pinned', 1, '{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"}', '{"candidate":{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"},"decided_at":1.0,"default":{"kernel_options":{},"params":{},"strategy":"direct"},"default_time_s":[0.002,0.0019,0.0021],"error":1e-06,"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":8,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"provenance":{"host":"here","trials":12},"ratio":[0.5,0.45,0.55],"state":"pinned","time_s":[0.001,0.0009,0.0011],"times_s":{"direct":0.002},"workspace_bytes":1048576}');
INSERT INTO public.workers VALUES (1, 'w', '{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"}', '{}', false, 1000, 1000, NULL, 'its device fails a test');
SELECT pg_catalog.setval('public.devices_id_seq', 1, true);
SELECT pg_catalog.setval('public.jobs_id_seq', 3, true);
SELECT pg_catalog.setval('public.keys_id_seq', 4, true);
SELECT pg_catalog.setval('public.measurements_id_seq', 3, true);
SELECT pg_catalog.setval('public.tasks_id_seq', 2, true);
SELECT pg_catalog.setval('public.tokens_id_seq', 1, true);
SELECT pg_catalog.setval('public.winners_id_seq', 3, true);
SELECT pg_catalog.setval('public.workers_id_seq', 1, true);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT pk_attempts PRIMARY KEY (task_id, attempt);
ALTER TABLE ONLY public.changes
    ADD CONSTRAINT pk_changes PRIMARY KEY (id);
ALTER TABLE ONLY public.devices
    ADD CONSTRAINT pk_devices PRIMARY KEY (id);
ALTER TABLE ONLY public.job_keys
    ADD CONSTRAINT pk_job_keys PRIMARY KEY (job_id, "position");
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT pk_jobs PRIMARY KEY (id);
ALTER TABLE ONLY public.keys
    ADD CONSTRAINT pk_keys PRIMARY KEY (id);
ALTER TABLE ONLY public.measurements
    ADD CONSTRAINT pk_measurements PRIMARY KEY (id);
ALTER TABLE ONLY public.probe
    ADD CONSTRAINT pk_probe PRIMARY KEY (id);
ALTER TABLE ONLY public.tasks
    ADD CONSTRAINT pk_tasks PRIMARY KEY (id);
ALTER TABLE ONLY public.tokens
    ADD CONSTRAINT pk_tokens PRIMARY KEY (id);
ALTER TABLE ONLY public.winners
    ADD CONSTRAINT pk_winners PRIMARY KEY (id);
ALTER TABLE ONLY public.workers
    ADD CONSTRAINT pk_workers PRIMARY KEY (id);
ALTER TABLE ONLY public.devices
    ADD CONSTRAINT uq_devices_digest UNIQUE (digest);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT uq_jobs_name UNIQUE (name);
ALTER TABLE ONLY public.keys
    ADD CONSTRAINT uq_keys_digest UNIQUE (digest);
ALTER TABLE ONLY public.measurements
    ADD CONSTRAINT uq_measurements_attempt UNIQUE (attempt);
ALTER TABLE ONLY public.tasks
    ADD CONSTRAINT uq_tasks_name UNIQUE (name);
ALTER TABLE ONLY public.tokens
    ADD CONSTRAINT uq_tokens_digest UNIQUE (digest);
ALTER TABLE ONLY public.workers
    ADD CONSTRAINT uq_workers_name UNIQUE (name);
CREATE INDEX ix_devices_identity ON public.devices USING btree (identity);
CREATE INDEX ix_devices_name ON public.devices USING btree (name);
CREATE INDEX ix_job_keys_key_id ON public.job_keys USING btree (key_id);
CREATE INDEX ix_job_keys_queued ON public.job_keys USING btree (target, job_id, "position") WHERE ((state)::text = 'queued'::text);
CREATE INDEX ix_job_keys_running ON public.job_keys USING btree (owner) WHERE ((state)::text = 'running'::text);
CREATE INDEX ix_jobs_state ON public.jobs USING btree (state);
CREATE INDEX ix_keys_device_id ON public.keys USING btree (device_id);
CREATE INDEX ix_keys_nearby ON public.keys USING btree (dtype, kernel, groups, cin, cout);
CREATE INDEX ix_measurements_key_id_device_id_candidate_measured_at ON public.measurements USING btree (key_id, device_id, candidate, measured_at);
CREATE INDEX ix_measurements_key_id_measured_at ON public.measurements USING btree (key_id, measured_at);
CREATE INDEX ix_tasks_changed_at ON public.tasks USING btree (changed_at);
CREATE INDEX ix_winners_key_id ON public.winners USING btree (key_id);
CREATE INDEX ix_winners_latest ON public.winners USING btree (decided_at, id) WHERE is_current;
CREATE INDEX ix_workers_seen_at ON public.workers USING btree (seen_at);
CREATE UNIQUE INDEX uq_jobs_active ON public.jobs USING btree (keys_digest) WHERE ((state)::text = ANY ((ARRAY['queued'::character varying, 'running'::character varying])::text[]));
CREATE UNIQUE INDEX uq_tasks_active ON public.tasks USING btree (digest) WHERE ((state)::text = ANY ((ARRAY['queued'::character varying, 'running'::character varying])::text[]));
CREATE UNIQUE INDEX uq_winners_current ON public.winners USING btree (key_id) WHERE is_current;
CREATE TRIGGER tokens_changed AFTER INSERT OR DELETE OR UPDATE ON public.tokens FOR EACH STATEMENT EXECUTE FUNCTION public.count_change();
CREATE TRIGGER winners_changed AFTER INSERT OR DELETE OR UPDATE ON public.winners FOR EACH STATEMENT EXECUTE FUNCTION public.count_change();
ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT fk_attempts_task_id FOREIGN KEY (task_id) REFERENCES public.tasks(id);
ALTER TABLE ONLY public.job_keys
    ADD CONSTRAINT fk_job_keys_job_id FOREIGN KEY (job_id) REFERENCES public.jobs(id);
ALTER TABLE ONLY public.job_keys
    ADD CONSTRAINT fk_job_keys_key_id FOREIGN KEY (key_id) REFERENCES public.keys(id);
ALTER TABLE ONLY public.keys
    ADD CONSTRAINT fk_keys_device_id FOREIGN KEY (device_id) REFERENCES public.devices(id);
ALTER TABLE ONLY public.measurements
    ADD CONSTRAINT fk_measurements_device_id FOREIGN KEY (device_id) REFERENCES public.devices(id);
ALTER TABLE ONLY public.measurements
    ADD CONSTRAINT fk_measurements_key_id FOREIGN KEY (key_id) REFERENCES public.keys(id);
ALTER TABLE ONLY public.winners
    ADD CONSTRAINT fk_winners_device_id FOREIGN KEY (device_id) REFERENCES public.devices(id);
ALTER TABLE ONLY public.winners
    ADD CONSTRAINT fk_winners_key_id FOREIGN KEY (key_id) REFERENCES public.keys(id);
