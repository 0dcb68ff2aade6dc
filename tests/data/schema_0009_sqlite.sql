BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0009');
CREATE TABLE attempts (
	task_id INTEGER NOT NULL, 
	attempt INTEGER NOT NULL, 
	worker TEXT NOT NULL, 
	counted BOOLEAN NOT NULL, 
	result TEXT NOT NULL, 
	error TEXT NOT NULL, 
	ended_at FLOAT NOT NULL, 
	CONSTRAINT pk_attempts PRIMARY KEY (task_id, attempt), 
	CONSTRAINT fk_attempts_task_id FOREIGN KEY(task_id) REFERENCES tasks (id)
);
INSERT INTO "attempts" VALUES(1,1,'w',1,'[{"attempt":"delivered","candidate":{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"},"compile_s":0.0,"conditions":{},"error":1e-06,"error_bound":null,"fingerprint":"","kernels":[{"bytes":0,"device":"CPU","median_s":null,"name":"r_64","ops":7,"source_bytes":0}],"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":32,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"measured_at":1000.0,"reason":"","status":"ok","times_s":[0.001,0.0011],"workspace_bytes":0,"yardstick_times_s":[0.002,0.0021]}]','',1000.0);
CREATE TABLE changes (
	id INTEGER NOT NULL, 
	count BIGINT NOT NULL, 
	CONSTRAINT pk_changes PRIMARY KEY (id)
);
INSERT INTO "changes" VALUES(1,8);
CREATE TABLE devices (
	id INTEGER NOT NULL, 
	digest VARCHAR(32) NOT NULL, 
	identity VARCHAR(32) NOT NULL, 
	name TEXT NOT NULL, 
	spec TEXT NOT NULL, 
	CONSTRAINT pk_devices PRIMARY KEY (id), 
	CONSTRAINT uq_devices_digest UNIQUE (digest)
);
INSERT INTO "devices" VALUES(1,'6a4469a8f7db3ff1dc8efb7e86ba362a','031d1ebb7fcbfaa365593f21bda7a048','CPU','{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"}');
CREATE TABLE job_keys (
	job_id INTEGER NOT NULL, 
	position INTEGER NOT NULL, 
	key_id INTEGER NOT NULL, 
	body TEXT NOT NULL, target VARCHAR(16) DEFAULT '' NOT NULL, state VARCHAR(16) DEFAULT 'queued' NOT NULL, owner TEXT DEFAULT '' NOT NULL, error TEXT DEFAULT '' NOT NULL, seen_at FLOAT, 
	CONSTRAINT pk_job_keys PRIMARY KEY (job_id, position), 
	CONSTRAINT fk_job_keys_job_id FOREIGN KEY(job_id) REFERENCES jobs (id), 
	CONSTRAINT fk_job_keys_key_id FOREIGN KEY(key_id) REFERENCES keys (id)
);
INSERT INTO "job_keys" VALUES(1,0,1,'{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":64,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1}','9ae8343d97231a59','done','old','',1000.0);
INSERT INTO "job_keys" VALUES(2,0,1,'{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":64,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1}','9ae8343d97231a59','running','killed','',1000.0);
INSERT INTO "job_keys" VALUES(2,1,2,'{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":8,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1}','9ae8343d97231a59','queued','','',NULL);
INSERT INTO "job_keys" VALUES(3,0,3,'{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":16,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1}','9ae8343d97231a59','queued','','',NULL);
CREATE TABLE jobs (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	name VARCHAR(32) NOT NULL, 
	keys_digest VARCHAR(32) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	budget TEXT NOT NULL, 
	done_keys INTEGER NOT NULL, 
	progress TEXT NOT NULL, 
	error TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	started_at FLOAT, 
	ended_at FLOAT, 
	priority INTEGER DEFAULT '0' NOT NULL, deadline FLOAT, idle BOOLEAN DEFAULT 0 NOT NULL, retry_of TEXT DEFAULT '' NOT NULL, submitter TEXT DEFAULT '' NOT NULL, 
	CONSTRAINT uq_jobs_name UNIQUE (name)
);
INSERT INTO "jobs" VALUES(1,'ade0e6bd2003473b8b173a7709203e40','6d77f37518d3517d6ebc07804c4f2b27','done','{"seconds":null,"trials":3}',1,'{"digest":"584ad16935d053517b776cb932461e04","key":"1x64x56x56 64x64x3x3 padding 1 on CPU"}','',1000.0,1000.0,1000.0,0,NULL,0,'','');
INSERT INTO "jobs" VALUES(2,'83952121acb649a1b17959493595a4a8','49179a6adad75fd7ae69fa1ef1e0f5f7','running','{"seconds":60.0,"trials":null}',0,'{}','',1000.0,1000.0,NULL,0,NULL,0,'','');
INSERT INTO "jobs" VALUES(3,'044dc206fbda41d487cb259eb9550472','6be2be7322086fdd9545365153dc933e','queued','{"seconds":null,"trials":1}',0,'{}','',1000.0,NULL,NULL,-1,NULL,0,'','token:1');
CREATE TABLE keys (
	id INTEGER NOT NULL, 
	digest VARCHAR(32) NOT NULL, 
	device_id INTEGER NOT NULL, 
	shape TEXT NOT NULL, 
	policy TEXT NOT NULL, 
	dtype VARCHAR(16) NOT NULL, 
	batch INTEGER NOT NULL, 
	cin INTEGER NOT NULL, 
	cout INTEGER NOT NULL, 
	groups INTEGER NOT NULL, 
	spatial VARCHAR(64) NOT NULL, 
	kernel VARCHAR(64) NOT NULL, 
	CONSTRAINT pk_keys PRIMARY KEY (id), 
	CONSTRAINT uq_keys_digest UNIQUE (digest), 
	CONSTRAINT fk_keys_device_id FOREIGN KEY(device_id) REFERENCES devices (id)
);
INSERT INTO "keys" VALUES(1,'584ad16935d053517b776cb932461e04',1,'{"acc_dtype":"float32","batch":1,"cin":64,"cout":64,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]}','{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null}','float32',1,64,64,1,'56x56','3x3');
INSERT INTO "keys" VALUES(2,'c1d63fa16513c5abcb799493d0b20e00',1,'{"acc_dtype":"float32","batch":1,"cin":64,"cout":8,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]}','{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null}','float32',1,64,8,1,'56x56','3x3');
INSERT INTO "keys" VALUES(3,'0b1caa1788f68c3e73a556348fa617bc',1,'{"acc_dtype":"float32","batch":1,"cin":64,"cout":16,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]}','{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null}','float32',1,64,16,1,'56x56','3x3');
INSERT INTO "keys" VALUES(4,'2b8dc910ee6b64fb371a0337071a4b46',1,'{"acc_dtype":"float32","batch":1,"cin":64,"cout":32,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]}','{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null}','float32',1,64,32,1,'56x56','3x3');
CREATE TABLE measurements (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	attempt TEXT NOT NULL, 
	key_id INTEGER NOT NULL, 
	device_id INTEGER NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	candidate VARCHAR(16) NOT NULL, 
	measured_at FLOAT NOT NULL, 
	body TEXT NOT NULL, 
	CONSTRAINT uq_measurements_attempt UNIQUE (attempt), 
	CONSTRAINT fk_measurements_key_id FOREIGN KEY(key_id) REFERENCES keys (id), 
	CONSTRAINT fk_measurements_device_id FOREIGN KEY(device_id) REFERENCES devices (id)
);
INSERT INTO "measurements" VALUES(1,'one',1,1,'ok','e874dc0cb082f22e',1.0,'{"attempt":"one","candidate":{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"},"compile_s":0.0,"conditions":{},"error":1e-06,"error_bound":null,"fingerprint":"","kernels":[{"bytes":0,"device":"CPU","median_s":null,"name":"r_64","ops":7,"source_bytes":0}],"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":64,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"measured_at":1.0,"reason":"","status":"ok","times_s":[0.001,0.0011],"workspace_bytes":0,"yardstick_times_s":[0.002,0.0021]}');
INSERT INTO "measurements" VALUES(2,'two',2,1,'ok','e874dc0cb082f22e',2.0,'{"attempt":"two","candidate":{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"},"compile_s":0.0,"conditions":{},"error":1e-06,"error_bound":null,"fingerprint":"","kernels":[{"bytes":0,"device":"CPU","median_s":null,"name":"r_64","ops":7,"source_bytes":0}],"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":8,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"measured_at":2.0,"reason":"","status":"ok","times_s":[0.001,0.0011],"workspace_bytes":0,"yardstick_times_s":[0.002,0.0021]}');
INSERT INTO "measurements" VALUES(3,'delivered',4,1,'ok','e874dc0cb082f22e',1000.0,'{"attempt":"delivered","candidate":{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"},"compile_s":0.0,"conditions":{},"error":1e-06,"error_bound":null,"fingerprint":"","kernels":[{"bytes":0,"device":"CPU","median_s":null,"name":"r_64","ops":7,"source_bytes":0}],"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":32,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"measured_at":1000.0,"reason":"","status":"ok","times_s":[0.001,0.0011],"workspace_bytes":0,"yardstick_times_s":[0.002,0.0021]}');
CREATE TABLE probe (
	id INTEGER NOT NULL, 
	count BIGINT NOT NULL, 
	CONSTRAINT pk_probe PRIMARY KEY (id)
);
INSERT INTO "probe" VALUES(1,1);
CREATE TABLE tasks (
	id INTEGER NOT NULL, 
	name VARCHAR(32) NOT NULL, 
	queue TEXT NOT NULL, 
	digest VARCHAR(32) NOT NULL, 
	request TEXT NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	attempt INTEGER NOT NULL, 
	worker TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	changed_at FLOAT NOT NULL, key_digest VARCHAR(32) DEFAULT '' NOT NULL, idle BOOLEAN DEFAULT 0 NOT NULL, release TEXT DEFAULT '' NOT NULL, waiting TEXT DEFAULT '' NOT NULL, lost TEXT DEFAULT '[]' NOT NULL, 
	CONSTRAINT pk_tasks PRIMARY KEY (id), 
	CONSTRAINT uq_tasks_name UNIQUE (name)
);
INSERT INTO "tasks" VALUES(1,'f0e823652dd24ec29eb930709e4aaffb','q','f535ef42491f98f4bfa7754a1a193b39','{"candidates":[{"kernel_options":{},"params":{},"strategy":"direct"}],"hints":[],"hopeless":2.0,"keep":0,"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":32,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"limits":{"lowering_s":10.0,"memory_bytes":null,"prepare_s":60.0,"run_s":30.0},"options":null,"race":false,"round_s":0.02,"rounds":1,"seed":0}','done',1,'w',1000.0,1000.0,'2b8dc910ee6b64fb371a0337071a4b46',0,'0.1.0','','[]');
INSERT INTO "tasks" VALUES(2,'79d772dd3704440dbc7c83cad1c052ec','q','1ba294d7d61ae561a5a3da5a6d5f9e7f','{"candidates":[{"kernel_options":{},"params":{},"strategy":"direct"}],"hints":[],"hopeless":2.0,"keep":0,"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":32,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"limits":{"lowering_s":10.0,"memory_bytes":null,"prepare_s":60.0,"run_s":30.0},"options":null,"race":false,"round_s":0.02,"rounds":2,"seed":0}','queued',1,'',1000.0,1000.0,'2b8dc910ee6b64fb371a0337071a4b46',0,'0.1.0','','[]');
CREATE TABLE tokens (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	name TEXT NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	scope VARCHAR(16) NOT NULL, 
	created_at FLOAT NOT NULL, 
	expires_at FLOAT, 
	revoked_at FLOAT, 
	CONSTRAINT uq_tokens_digest UNIQUE (digest)
);
INSERT INTO "tokens" VALUES(1,'me','a8f406baea60d39533b67b3877b01dfa92bdcfc66fdbb2d2337e28967ff5e990','tune',1000.0,NULL,NULL);
CREATE TABLE winners (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	key_id INTEGER NOT NULL, 
	device_id INTEGER NOT NULL, 
	is_current BOOLEAN NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	decided_at FLOAT NOT NULL, 
	candidate TEXT NOT NULL, 
	body TEXT NOT NULL, 
	CONSTRAINT fk_winners_key_id FOREIGN KEY(key_id) REFERENCES keys (id), 
	CONSTRAINT fk_winners_device_id FOREIGN KEY(device_id) REFERENCES devices (id)
);
INSERT INTO "winners" VALUES(1,1,1,0,'verified',1.0,'{"kernel_options":{},"params":{"tile":2},"strategy":"hybrid_grid"}','{"candidate":{"kernel_options":{},"params":{"tile":2},"strategy":"hybrid_grid"},"decided_at":1.0,"default":{"kernel_options":{},"params":{},"strategy":"direct"},"default_time_s":[0.002,0.0019,0.0021],"error":1e-06,"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":64,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"provenance":{"host":"here","trials":12},"ratio":[0.5,0.45,0.55],"state":"verified","time_s":[0.001,0.0009,0.0011],"times_s":{"direct":0.002},"workspace_bytes":1048576}');
INSERT INTO "winners" VALUES(2,1,1,1,'verified',2.0,'{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"}','{"candidate":{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"},"decided_at":2.0,"default":{"kernel_options":{},"params":{},"strategy":"direct"},"default_time_s":[0.002,0.0019,0.0021],"error":1e-06,"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":64,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"provenance":{"host":"here","trials":12},"ratio":[0.5,0.45,0.55],"state":"verified","time_s":[0.001,0.0009,0.0011],"times_s":{"direct":0.002},"workspace_bytes":1048576}');
INSERT INTO "winners" VALUES(3,2,1,1,'pinned',1.0,'{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"}','{"candidate":{"kernel_options":{},"params":{"tile":4},"strategy":"hybrid_grid"},"decided_at":1.0,"default":{"kernel_options":{},"params":{},"strategy":"direct"},"default_time_s":[0.002,0.0019,0.0021],"error":1e-06,"key":{"device":{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"},"policy":{"allow_tf32":false,"frozen_weights":false,"max_error":null,"max_workspace_bytes":null},"shape":{"acc_dtype":"float32","batch":1,"cin":64,"cout":8,"dilation":[1,1],"dtype":"float32","groups":1,"kernel":[3,3],"padding":[[1,1],[1,1]],"spatial":[56,56],"stride":[1,1]},"version":1},"provenance":{"host":"here","trials":12},"ratio":[0.5,0.45,0.55],"state":"pinned","time_s":[0.001,0.0009,0.0011],"times_s":{"direct":0.002},"workspace_bytes":1048576}');
CREATE TABLE workers (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	device TEXT NOT NULL, 
	about TEXT NOT NULL, 
	in_use BOOLEAN NOT NULL, 
	started_at FLOAT NOT NULL, 
	seen_at FLOAT NOT NULL, 
	ended_at FLOAT, unfit TEXT DEFAULT '' NOT NULL, 
	CONSTRAINT pk_workers PRIMARY KEY (id), 
	CONSTRAINT uq_workers_name UNIQUE (name)
);
INSERT INTO "workers" VALUES(1,'w','{"arch":"x86_64","compiler":"","cores":2,"device":"CPU","driver":"clang 14","flags":[],"os":"","renderer":"ClangRenderer","tinygrad":"0.14.0"}','{}',0,1000.0,1000.0,NULL,'its device fails a test');
CREATE INDEX ix_devices_identity ON devices (identity);
CREATE INDEX ix_devices_name ON devices (name);
CREATE INDEX ix_keys_device_id ON keys (device_id);
CREATE INDEX ix_keys_nearby ON keys (dtype, kernel, groups, cin, cout);
CREATE INDEX ix_measurements_key_id_measured_at ON measurements (key_id, measured_at);
CREATE UNIQUE INDEX uq_winners_current ON winners (key_id) WHERE is_current;
CREATE INDEX ix_winners_key_id ON winners (key_id);
CREATE INDEX ix_winners_latest ON winners (decided_at, id) WHERE is_current;
CREATE UNIQUE INDEX uq_jobs_active ON jobs (keys_digest) WHERE state IN ('queued', 'running');
CREATE INDEX ix_jobs_state ON jobs (state);
CREATE INDEX ix_job_keys_key_id ON job_keys (key_id);
CREATE VIEW lookup_v1 AS
SELECT keys.digest AS key_digest, winners.state AS state, winners.candidate AS candidate,
       winners.body AS winner, winners.decided_at AS decided_at
FROM winners JOIN keys ON keys.id = winners.key_id
WHERE winners.is_current;
CREATE TRIGGER winners_insert_changed AFTER insert ON winners BEGIN UPDATE changes SET count = count + 1; END;
CREATE TRIGGER winners_update_changed AFTER update ON winners BEGIN UPDATE changes SET count = count + 1; END;
CREATE TRIGGER winners_delete_changed AFTER delete ON winners BEGIN UPDATE changes SET count = count + 1; END;
CREATE INDEX ix_job_keys_queued ON job_keys (target, job_id, position) WHERE state = 'queued';
CREATE INDEX ix_job_keys_running ON job_keys (owner) WHERE state = 'running';
CREATE TRIGGER tokens_insert_changed AFTER insert ON tokens BEGIN UPDATE changes SET count = count + 1; END;
CREATE TRIGGER tokens_update_changed AFTER update ON tokens BEGIN UPDATE changes SET count = count + 1; END;
CREATE TRIGGER tokens_delete_changed AFTER delete ON tokens BEGIN UPDATE changes SET count = count + 1; END;
CREATE INDEX ix_workers_seen_at ON workers (seen_at);
CREATE UNIQUE INDEX uq_tasks_active ON tasks (digest) WHERE state IN ('queued', 'running');
CREATE INDEX ix_tasks_changed_at ON tasks (changed_at);
CREATE INDEX ix_measurements_key_id_device_id_candidate_measured_at ON measurements (key_id, device_id, candidate, measured_at);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('measurements',3);
INSERT INTO "sqlite_sequence" VALUES('winners',3);
INSERT INTO "sqlite_sequence" VALUES('jobs',3);
INSERT INTO "sqlite_sequence" VALUES('tokens',1);
COMMIT;
