-- SPDX-License-Identifier: LGPL-2.1-or-later
-- The store of a fleet, version 1 (PRAGMA user_version). Any SQLite reads it, also during a scan.
-- Addresses are text in hex, sizes are bytes, times are ISO 8601 in UTC, truth values are 0 and 1.

-- One run of `fleet scan`.
CREATE TABLE scan (
    id       INTEGER PRIMARY KEY,
    started  TEXT NOT NULL,
    finished TEXT,
    state    TEXT NOT NULL CHECK (state IN ('running', 'finished', 'interrupted')),
    version  TEXT NOT NULL               -- of drgn_reliable
);

-- One content of a dump, scanned with one set of options.
CREATE TABLE dump (
    id           INTEGER PRIMARY KEY,
    scan         INTEGER NOT NULL REFERENCES scan,  -- in which it was scanned
    identity     TEXT,                   -- hash of the content; NULL if it could not be read
    options      TEXT NOT NULL,          -- hash of what else decides the result
    limits       TEXT NOT NULL,          -- 'SECONDS s, BYTES B'
    status       TEXT NOT NULL CHECK (status IN ('whole', 'incomplete', 'failed')),
    cause        TEXT,                   -- of a failure: format, missing, timeout, crash ...
    detail       TEXT,
    stored       TEXT,                   -- format of the file
    size         INTEGER,
    release      TEXT,
    architecture TEXT,
    unwinder     TEXT,
    types        TEXT,                   -- where they came from
    symbols      TEXT,
    node         TEXT,                   -- the machine's own name
    crashed      INTEGER,                -- seconds since 1970, by its own clock
    seconds      REAL NOT NULL,          -- that the scan took
    facts        TEXT,                   -- what `drgn-reliable info` says, as JSON
    UNIQUE (identity, options)
);

-- Where a dump lies now. A dump without a place was replaced by another, or scanned again with
-- other options; its results are kept to compare with.
CREATE TABLE place (
    path     TEXT PRIMARY KEY,
    dump     INTEGER NOT NULL REFERENCES dump,
    scan     INTEGER NOT NULL REFERENCES scan,  -- that saw it last
    host     TEXT,                       -- as the manifest has it
    identity TEXT,
    size     INTEGER,
    modified INTEGER,                    -- nanoseconds since 1970
    changed  INTEGER
);
CREATE INDEX place_dump ON place (dump);

-- Of a manifest.
CREATE TABLE label (
    path  TEXT NOT NULL REFERENCES place ON DELETE CASCADE,
    name  TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (path, name)
) WITHOUT ROWID;

-- Files that are no dumps.
CREATE TABLE passed_over (
    path TEXT PRIMARY KEY,
    scan INTEGER NOT NULL REFERENCES scan,
    why  TEXT NOT NULL
) WITHOUT ROWID;

-- What was tried with a dump, in order.
CREATE TABLE attempt (
    dump    INTEGER NOT NULL REFERENCES dump ON DELETE CASCADE,
    number  INTEGER NOT NULL,
    rung    TEXT NOT NULL,               -- debug information, BTF, headers
    outcome TEXT NOT NULL,               -- scanned, read, or why not
    detail  TEXT NOT NULL,
    seconds REAL NOT NULL,
    memory  INTEGER NOT NULL,            -- the most that the process had, the dump's pages included
    output  TEXT NOT NULL,               -- the end of what it printed, where it failed
    PRIMARY KEY (dump, number)
) WITHOUT ROWID;

-- What was missing (incomplete), or damaged without touching a verdict (warning).
CREATE TABLE problem (
    dump   INTEGER NOT NULL REFERENCES dump ON DELETE CASCADE,
    number INTEGER NOT NULL,
    kind   TEXT NOT NULL CHECK (kind IN ('incomplete', 'warning')),
    text   TEXT NOT NULL,
    PRIMARY KEY (dump, number)
) WITHOUT ROWID;

-- A stack, once for all tasks of all dumps.
CREATE TABLE stack (
    id         INTEGER PRIMARY KEY,
    hash       TEXT NOT NULL UNIQUE,     -- of all frames: functions, offsets, modules
    normalised TEXT NOT NULL,            -- of the functions' names: the same in other releases
    depth      INTEGER NOT NULL
);
CREATE INDEX stack_normalised ON stack (normalised);

CREATE TABLE frame (
    stack   INTEGER NOT NULL REFERENCES stack ON DELETE CASCADE,
    number  INTEGER NOT NULL,            -- 0 is the innermost
    symbol  TEXT,
    offset  INTEGER NOT NULL,
    module  TEXT,
    code    TEXT NOT NULL,               -- by which rule it is kernel text
    role    TEXT NOT NULL,               -- what it is there for
    of      TEXT,                        -- and which
    address TEXT,                        -- where it has no symbol
    PRIMARY KEY (stack, number)
) WITHOUT ROWID;
CREATE INDEX frame_symbol ON frame (symbol);

CREATE TABLE task (
    id       INTEGER PRIMARY KEY,
    dump     INTEGER NOT NULL REFERENCES dump ON DELETE CASCADE,
    address  TEXT NOT NULL,              -- of its task_struct
    pid      INTEGER NOT NULL,
    tgid     INTEGER NOT NULL,
    cpu      INTEGER NOT NULL,
    comm     TEXT NOT NULL,
    state    TEXT NOT NULL,
    kind     TEXT NOT NULL,              -- user, kthread, idle
    kernel   TEXT NOT NULL,              -- reliable, unreliable, running, unsupported
    errno    INTEGER NOT NULL,
    proof    TEXT NOT NULL,              -- proven, refuted, undecided
    stack    INTEGER NOT NULL REFERENCES stack,
    waits_in TEXT                        -- innermost function that is not the scheduler's
);
CREATE INDEX task_dump ON task (dump);
CREATE INDEX task_stack ON task (stack);

-- Why a trace is not reliable, or in doubt; the catalogue is in `reason`.
CREATE TABLE task_reason (
    task    INTEGER NOT NULL REFERENCES task ON DELETE CASCADE,
    number  INTEGER NOT NULL,
    reason  TEXT NOT NULL REFERENCES reason,
    frame   INTEGER NOT NULL,            -- frames that had been found when it was met
    detail  TEXT NOT NULL,
    refused INTEGER NOT NULL,            -- the one for which the kernel refuses the trace
    PRIMARY KEY (task, number)
) WITHOUT ROWID;
CREATE INDEX task_reason_reason ON task_reason (reason);

CREATE TABLE reason (
    id            TEXT PRIMARY KEY,
    section       TEXT NOT NULL,         -- of the kernel's reliable-stacktrace document
    section_title TEXT NOT NULL,
    title         TEXT NOT NULL,
    decided_by    TEXT NOT NULL,
    kernel        INTEGER NOT NULL,      -- 1: the kernel refuses the trace; 0: advisory
    proof         TEXT NOT NULL,
    remedy        TEXT NOT NULL
) WITHOUT ROWID;

-- Livepatches that are loaded.
CREATE TABLE patch (
    dump    INTEGER NOT NULL REFERENCES dump ON DELETE CASCADE,
    number  INTEGER NOT NULL,
    name    TEXT NOT NULL,
    enabled INTEGER NOT NULL,
    replaces INTEGER NOT NULL,
    forced  INTEGER NOT NULL,
    PRIMARY KEY (dump, number)
) WITHOUT ROWID;

-- The livepatch transition in progress.
CREATE TABLE transition (
    dump     INTEGER PRIMARY KEY REFERENCES dump ON DELETE CASCADE,
    patch    TEXT NOT NULL,
    target   TEXT NOT NULL,              -- patched, unpatched
    replaces INTEGER NOT NULL,
    pending  INTEGER NOT NULL,           -- tasks that have not switched
    switched INTEGER NOT NULL,
    attempts INTEGER,
    seconds  REAL,
    stalled  INTEGER NOT NULL            -- some task cannot be switched
);

-- A task that has not switched.
CREATE TABLE pending (
    task        INTEGER PRIMARY KEY REFERENCES task ON DELETE CASCADE,
    decision    TEXT NOT NULL,           -- sleeping, unreliable, running, would-switch
    waits_for   TEXT,
    file        TEXT,
    leaves_by   TEXT NOT NULL,
    advice      TEXT NOT NULL,
    advice_text TEXT NOT NULL
);

-- The functions of the patch on its stack, the one that the kernel names first.
CREATE TABLE blocker (
    task     INTEGER NOT NULL REFERENCES pending ON DELETE CASCADE,
    number   INTEGER NOT NULL,
    function TEXT NOT NULL,
    module   TEXT,
    version  TEXT NOT NULL,
    frame    INTEGER,
    PRIMARY KEY (task, number)
) WITHOUT ROWID;

-- The dumps that a report is of: those that have a place.
CREATE VIEW current AS
    SELECT dump.*,
           (SELECT count(*) FROM task WHERE task.dump = dump.id) AS tasks,
           (SELECT count(*) FROM task WHERE task.dump = dump.id AND kernel = 'unreliable')
               AS unreliable,
           EXISTS (SELECT 1 FROM transition WHERE transition.dump = dump.id AND stalled)
               AS stalled
    FROM dump WHERE id IN (SELECT dump FROM place);

-- Which hosts they are of: as the manifest says, or else by their own name.
CREATE VIEW host AS
    SELECT DISTINCT dump.id AS dump, coalesce(place.host, dump.node) AS host
    FROM dump JOIN place ON place.dump = dump.id;

-- Their tasks.
CREATE VIEW current_task AS
    SELECT task.* FROM task WHERE dump IN (SELECT dump FROM place);

-- What keeps their livepatch transitions from finishing: a line for each task in the way and
-- each function of the patch that it is in.
CREATE VIEW blocking AS
    SELECT task.dump, transition.patch, pending.decision, blocker.function, blocker.module,
           CASE WHEN pending.decision = 'unreliable' THEN task_reason.reason END AS reason,
           pending.task, task.pid, task.comm, pending.advice_text AS advice
    FROM pending
    JOIN task ON task.id = pending.task
    JOIN transition ON transition.dump = task.dump
    LEFT JOIN blocker ON blocker.task = pending.task AND pending.decision = 'sleeping'
    LEFT JOIN task_reason ON task_reason.task = pending.task AND task_reason.refused
    WHERE pending.decision != 'would-switch' AND task.dump IN (SELECT dump FROM place);
