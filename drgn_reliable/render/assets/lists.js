// SPDX-License-Identifier: LGPL-2.1-or-later
// The tables of the report: which columns they have, and what a row shows when it is opened.

const FEW = 3; // names in a cell; an opened row has them all
const SOME = 12; // names among the facts of something

// Links ------------------------------------------------------------------------------------------

/** A link within the page; with a filter it shows only what passes. */
function linkTo(target, content, filter = null) {
  const tail = filter === null ? "" : `?filter=${encodeURIComponent(filter)}`;
  return make("a", { href: `#${target}${tail}` }, content);
}

const targetOf = (kind, id) => `${kind}-${encodeURIComponent(id)}`;

/** Where the tasks of a group are: if only the scheduler is known, there. */
const whereOf = (group) => group.in || group.frames[0] || "no frame";

function groupLink(group) {
  const link = linkTo(targetOf("group", group.id), nameOf(whereOf(group)));
  return make("span", {}, link, ` (${count(group.tasks, "task")})`);
}

function dumpLink(id) {
  const dump = dumpById.get(id);
  if (!dump) return `dump ${id}`;
  // Of one dump there is no table of dumps.
  return ofFleet ? linkTo(targetOf("dump", id), nameOf(dump.path)) : nameOf(dump.path);
}

function reasonLink(id) {
  return kindOf.has(id) ? linkTo(targetOf("reason", id), nameOf(id)) : nameOf(id);
}

/** A link to the dumps that have a value in a field. */
function dumpsLink(field, value) {
  return ofFleet ? linkTo("dumps", nameOf(value), filterFor(field, value)) : nameOf(value);
}

const hostLink = (host) => dumpsLink("host", host);
const releaseLink = (release) => dumpsLink("release", release);
const labelLink = (label) => dumpsLink("label", label);

/** The first few, and how many more there are. */
function fewOf(all, most, show, count = all.length) {
  const rest = count - most;
  const shown = joined(all.slice(0, most).map(show));
  return rest > 0 ? [...shown, ` and ${number(rest)} more`] : shown;
}

/** Links to groups by their numbers. */
function groupLinks(ids, most) {
  return fewOf(
    ids.filter((id) => groupById.has(id)).map((id) => groupById.get(id)),
    most,
    groupLink,
  );
}

/** A list of all, or nothing. */
function listOf(all, show, tag = "ul") {
  const items = all.map((each) => make("li", {}, show(each)));
  return items.length ? make(tag, {}, items) : null;
}

/** A list of names in columns; of `all` there may be more than are in the report. */
function namesOf(names, all, show) {
  const list = listOf(names, show);
  const rest = all - names.length;
  list?.classList.add("names");
  if (rest > 0) list?.append(make("li", {}, `and ${number(rest)} more`));
  return list;
}

// Columns ----------------------------------------------------------------------------------------

function verdict(word) {
  return make("span", { class: `verdict ${/^[a-z]+$/.test(word) ? word : ""}` }, word);
}

const text = (label, value, cell = nameOf) => ({ label, value, cell });
const figure = (label, value, cell = number) => ({ label, value, cell, numeric: true });
const wide = (column) => ({ ...column, room: "wide" });
const roomy = (column) => ({ ...column, room: "roomy" });
const inFleet = (column) => (ofFleet ? column : null);
const ofHosts = (column) => (ofFleet && data.totals.hosts ? column : null); // none may be known
const columns = (...all) => all.filter((column) => column !== null);

const hostColumn = () => ofHosts(roomy(text("Host", (dump) => dump.host, hostLink)));
const dumpColumn = (idOf) =>
  wide(
    text(
      "Dump",
      (row) => dumpById.get(idOf(row))?.path ?? null,
      (_, row) => dumpLink(idOf(row)),
    ),
  );

// What blocks ------------------------------------------------------------------------------------

function blockedBy(row) {
  const module = row.module ? [" [", nameOf(row.module), "]"] : [];
  const where = row.function ? [" in ", nameOf(row.function), ...module] : [];
  if (row.decision === "sleeping") return ["asleep", where];
  if (row.decision === "running") return ["running on a CPU", where];
  return ["unreliable stack", where, row.reason ? [": ", reasonLink(row.reason)] : []];
}

function blockingTable() {
  return new Table({
    caption: "What blocks livepatches, the most important first",
    items: data.blocking,
    search: searchBlocking,
    columns: columns(
      wide(text("Patch", (row) => row.patch)),
      wide(
        text(
          "Its tasks are",
          (row) => `${row.decision} ${row.function ?? ""}`,
          (_, row) => blockedBy(row),
        ),
      ),
      figure("Tasks", (row) => row.tasks),
      inFleet(figure("Dumps", (row) => row.dumps)),
      ofHosts(
        roomy(
          text(
            "Hosts",
            (row) => row.hosts,
            (_, row) => fewOf(row.host_names, FEW, hostLink, row.hosts),
          ),
        ),
      ),
      wide(
        text(
          "Stacks",
          (row) => row.groups.length,
          (_, row) => groupLinks(row.groups, FEW),
        ),
      ),
    ),
    details: (row) =>
      facts([
        ["Hosts", ofFleet && row.hosts ? namesOf(row.host_names, row.hosts, hostLink) : null],
        ["Dumps", ofFleet ? namesOf(row.dump_ids, row.dumps, dumpLink) : null],
        ["Stacks", groupLinks(row.groups, row.groups.length)],
      ]),
  });
}

const stateOf = (transition) => (transition.stalled ? "stalled" : "going on");

function transitionsTable() {
  return new Table({
    caption: "Livepatch transitions",
    items: [...data.transitions].sort((a, b) => b.stalled - a.stalled || b.pending - a.pending),
    search: searchTransition,
    columns: columns(
      wide(text("Patch", (row) => row.patch)),
      inFleet(dumpColumn((row) => row.dump)),
      text("State", stateOf, verdict),
      figure("Left", (row) => row.pending),
      figure("Asleep", (row) => row.sleeping),
      figure("Unreliable", (row) => row.unreliable),
      figure("Running", (row) => row.running),
      figure("Attempts", (row) => row.attempts),
      figure("Lasts", (row) => row.seconds, duration),
    ),
    details: (row) =>
      facts([
        ["Direction", row.target === "patched" ? "patching" : "unpatching"],
        ["Switched", count(row.switched, "task")],
        ["Would switch", count(row.would_switch, "task")],
        ["What to do", listOf(row.advice, phrase)],
      ]),
  });
}

// Dumps ------------------------------------------------------------------------------------------

function attemptsOf(dump) {
  return listOf(dump.attempts, attemptLine, "ol");
}

function attemptLine({ rung, outcome, detail, seconds, memory, output }) {
  const why = detail ? [", ", nameOf(detail)] : [];
  const used = memory ? `${duration(seconds)}, ${size(memory)}` : duration(seconds);
  const lines = output.map((line) => make("li", {}, nameOf(line)));
  const said = lines.length ? make("ul", { class: "output" }, lines) : null;
  return [make("b", {}, nameOf(rung)), ": ", nameOf(outcome), why, ` (${used})`, said];
}

/** Dumps that were not read whole, with all that is known of why. */
function failedTable(items) {
  return new Table({
    caption: "Dumps that were not read whole",
    items,
    search: searchDump,
    columns: columns(
      dumpColumn((dump) => dump.id),
      hostColumn(),
      text("Read", (dump) => dump.status, verdict),
      text("Cause", (dump) => dump.cause),
      wide(
        text(
          "What happened",
          (dump) => dump.detail ?? dump.problems[0] ?? "",
          (_, dump) => [
            dump.detail ? make("p", {}, nameOf(dump.detail)) : null,
            listOf(dump.problems, nameOf),
            attemptsOf(dump),
          ],
        ),
      ),
    ),
  });
}

function dumpsTable() {
  return new Table({
    kind: "dumps",
    caption: "All dumps",
    items: data.dumps,
    search: searchDump,
    first: 100,
    pressed: (dump, open) => pressedAt(targetOf("dump", dump.id), open),
    columns: columns(
      wide(text("Dump", (dump) => dump.path)),
      hostColumn(),
      roomy(text("Kernel", (dump) => dump.release, releaseLink)),
      text("Architecture", (dump) => dump.architecture),
      text("Read", (dump) => dump.status, verdict),
      text("Livepatch", (dump) => (dump.stalled ? "stalled" : null), verdict),
      figure("Tasks", (dump) => dump.tasks),
      figure("Unreliable", (dump) => dump.unreliable),
      figure("Took", (dump) => dump.seconds, duration),
    ),
    details: dumpDetails,
  });
}

function dumpDetails(dump) {
  const named = (name) => (name === null ? null : nameOf(name));
  const copies = copiesOf.get(dump.id).filter((copy) => copy !== dump);
  return facts([
    ["Copies", listOf(copies, (copy) => nameOf(copy.path))],
    ["Labels", joined(labelsOf(dump).map(labelLink))],
    ["Kernel", named(dump.release)],
    ["Architecture", named(dump.architecture)],
    ["Unwinder", named(dump.unwinder)],
    ["Size", dump.size === null ? null : size(dump.size)],
    ["Cause", named(dump.cause)],
    ["Detail", named(dump.detail)],
    ["Problems", listOf(dump.problems, nameOf)],
    ["Attempts", dump.attempts.length > 1 || dump.cause !== null ? attemptsOf(dump) : null],
    ["Transitions", joined(transitionsOf(dump).map(transitionLine), "; ")],
    ["Stacks", ofFleet ? fewOf(groupsOf(dump), SOME, groupLink) : null],
  ]);
}

function transitionLine(row) {
  const left = count(row.pending, "task");
  return make("span", {}, nameOf(row.patch), `: ${stateOf(row)}, ${left} left`);
}

/** The groups in which tasks of a dump are listed, in the order of the data: what matters first. */
function groupsOf(dump) {
  return data.groups.filter((group) => group.examples.some((task) => task.dump === dump.id));
}

// Files and scans --------------------------------------------------------------------------------

function passedOverTable() {
  return new Table({
    caption: "Files that were passed over",
    items: data.passed_over,
    search: searchPassedOver,
    columns: [wide(text("File", (row) => row.path)), wide(text("Why", (row) => row.why))],
  });
}

function scansTable() {
  return new Table({
    caption: "Scans",
    items: data.scans,
    columns: [
      figure("Scan", (scan) => scan.scan, String),
      text("Started", (scan) => scan.started, moment),
      text("Finished", (scan) => scan.finished, moment),
      text("State", (scan) => scan.state, verdict),
      figure("Dumps", (scan) => scan.scanned),
      figure("Failed", (scan) => scan.failed),
      text("Version", (scan) => scan.version),
    ],
  });
}
