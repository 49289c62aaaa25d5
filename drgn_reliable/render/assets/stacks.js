// SPDX-License-Identifier: LGPL-2.1-or-later
// More tables: reasons, stacks, figures by something, and what is new.

// Reasons ----------------------------------------------------------------------------------------

const EFFECT = new Map([
  ["refutes", "It shows that the trace is wrong or incomplete: refuted."],
  ["leaves open", "From there on nothing in the dump shows it right or wrong: undecided."],
  ["ends", "Nothing can be said from there on, what follows is a guess: undecided."],
  ["none", "The dump still shows the whole trace: it can be proven."],
]);

const answerTo = (kind) => (kind.kernel ? "refuses" : "overlooks");

function reasonsTable() {
  const known = (show) => (row) => (kindOf.has(row.reason) ? show(kindOf.get(row.reason)) : null);
  return new Table({
    caption: "Reasons",
    items: data.by_reason,
    search: searchReason,
    columns: columns(
      roomy(text("Reason", (row) => row.reason, reasonLink)),
      wide(
        text(
          "What it is",
          known((kind) => kind.title),
          phrase,
        ),
      ),
      text("The kernel", known(answerTo), phrase),
      text(
        "Proof",
        known((kind) => kind.proof),
        phrase,
      ),
      figure("Tasks", (row) => row.tasks),
      inFleet(figure("Dumps", (row) => row.dumps)),
      ofHosts(figure("Hosts", (row) => row.hosts)),
    ),
  });
}

/** A section of the page for one reason. */
function reasonArticle(row) {
  const kind = kindOf.get(row.reason);
  const groups = data.groups.filter((group) => group.reasons.includes(row.reason));
  const every = [" (", linkTo("stacks", "all", filterFor("reason", row.reason)), ")"];
  const hosts = row.hosts ? ` on ${count(row.hosts, "host")}` : "";
  const where = ofFleet ? ` in ${count(row.dumps, "dump")}${hosts}` : "";
  return make(
    "article",
    { class: "reason" },
    make("h3", { tabindex: "-1" }, nameOf(row.reason)),
    kind ? explanationOf(kind) : null,
    facts([
      ["Found", `${count(row.tasks, "task")}${where}`],
      ["Kernels", ofFleet ? fewOf(row.releases, SOME, nameOf) : null],
      ["Stacks", [...fewOf(groups, 6, groupLink), ...(groups.length > 6 ? every : [])]],
    ]),
  );
}

function explanationOf(kind) {
  const does = kind.kernel
    ? "It refuses the stack"
    : "It overlooks this and takes the stack for reliable";
  return [
    make("p", { class: "title" }, `${kind.title}.`),
    facts([
      ["The kernel", `${does}. Decided by ${kind.decided_by}.`],
      ["Proof", EFFECT.get(kind.proof) ?? kind.proof],
      ["What to do", kind.remedy],
      ["Document", `${kind.section} ${kind.section_title}`],
    ]),
  ];
}

// Stacks -----------------------------------------------------------------------------------------

const NEAR = 60; // frames that are shown at first

function groupsTable() {
  const blocks = roomy(
    text(
      "Blocks",
      (group) => group.blocks.join(" ") || null,
      (_, group) => fewOf(group.blocks, FEW, nameOf),
    ),
  );
  return new Table({
    caption: "Stacks, those that matter first",
    items: data.groups,
    search: searchGroup,
    first: 100,
    pressed: (group, open) => pressedAt(targetOf("group", group.id), open),
    columns: columns(
      wide(text("In", whereOf)),
      text("Kernel", (group) => group.kernel, verdict),
      text("Proof", (group) => group.proof, verdict),
      wide(
        text(
          "Reasons",
          (group) => group.reasons.join(" ") || null,
          (_, group) => fewOf(group.reasons, 2, reasonLink),
        ),
      ),
      data.groups.some((group) => group.blocks.length) ? blocks : null,
      figure("Frames", (group) => group.frames.length),
      figure("Tasks", (group) => group.tasks),
      inFleet(figure("Dumps", (group) => group.dumps)),
      ofHosts(figure("Hosts", (group) => group.hosts)),
    ),
    details: groupDetails,
  });
}

function groupDetails(group) {
  return make(
    "div",
    { class: "stack" },
    make("div", {}, make("h4", {}, "Stack, innermost first"), frameList(group.frames)),
    make(
      "div",
      {},
      facts([
        ["Blocks", joined(group.blocks.map(nameOf))],
        ["Reasons", joined(group.reasons.map(reasonLink))],
        ["Kernels", ofFleet ? fewOf(group.releases, SOME, nameOf) : null],
        ["Stack\u2019s hash", nameOf(group.hash)],
      ]),
      make("h4", {}, count(group.tasks, "task")),
      tasksTable(group).element,
      group.more ? make("p", {}, `and ${number(group.more)} more`) : null,
    ),
  );
}

function tasksTable(group) {
  return new Table({
    caption: "Tasks with this stack",
    items: group.examples,
    first: 20,
    columns: columns(
      roomy(text("Process", (task) => task.comm)),
      figure("PID", (task) => task.pid, String),
      figure("CPU", (task) => task.cpu, String),
      text("State", (task) => task.state),
      text("Kind", (task) => task.kind),
      roomy(text("Task", (task) => task.task)),
      inFleet(dumpColumn((task) => task.dump)),
    ),
  });
}

/** Frames with their numbers; of calls of a function by itself one line. */
function frameList(frames) {
  const runs = [];
  frames.forEach((name, at) => {
    const run = runs.at(-1);
    if (run?.name === name) run.last = at;
    else runs.push({ name, first: at, last: at });
  });
  const list = make("ol", { class: "frames" });
  const show = (some) => list.append(...some.map(frameItem));
  show(runs.slice(0, NEAR));
  if (runs.length <= NEAR) return list;
  const all = makeButton(`Show all ${number(frames.length)} frames`, { class: "more" }, () => {
    all.remove();
    show(runs.slice(NEAR));
  });
  return [list, all];
}

function frameItem({ name, first, last }) {
  const numbers = first === last ? `#${first}` : `#${first}\u2013${last}`;
  return make("li", {}, make("span", { class: "at" }, numbers), " ", nameOf(name));
}

// Figures by something ---------------------------------------------------------------------------

function figuresTable(caption, label, field, items) {
  return new Table({
    caption,
    items,
    search: searchBy(field),
    first: 20,
    columns: columns(
      wide(
        text(
          label,
          (row) => row.key,
          (key) => dumpsLink(field, key),
        ),
      ),
      figure("Dumps", (row) => row.dumps),
      field === "host" ? null : ofHosts(figure("Hosts", (row) => row.hosts)),
      figure("Failed", (row) => row.failed),
      figure("Stalled", (row) => row.stalled),
      figure("Tasks", (row) => row.tasks),
      figure("Unreliable", (row) => row.unreliable),
      figure(
        "Share",
        (row) => (row.tasks ? row.unreliable / row.tasks : null),
        (share) => percent(share, 1),
      ),
    ),
  });
}

/** A link to the stacks that have a value in a field. */
const stacksLink = (field) => (value) => linkTo("stacks", nameOf(value), filterFor(field, value));

function functionsTable() {
  return new Table({
    caption: "Functions in which unreliable tasks are",
    items: data.by_function,
    search: searchBy("function"),
    first: 20,
    columns: columns(
      wide(text("Function", (row) => row.function, stacksLink("in"))),
      figure("Unreliable tasks", (row) => row.tasks),
      inFleet(figure("Dumps", (row) => row.dumps)),
      ofHosts(figure("Hosts", (row) => row.hosts)),
    ),
  });
}

// New since --------------------------------------------------------------------------------------

const NEW = [
  { kind: "reasons", heading: "Reasons", field: "reason", show: reasonLink },
  { kind: "functions", heading: "Functions", field: "function", show: stacksLink("function") },
  { kind: "stacks", heading: "Stacks", field: "function", show: stackLink },
  { kind: "releases", heading: "Kernels", field: "release", show: stacksLink("release") },
];

function stackLink(hash, row) {
  return groupById.has(row.group) ? groupLink(groupById.get(row.group)) : nameOf(hash);
}

/** A table for each kind of thing that is new, with its heading. */
function newTables() {
  return NEW.filter(({ kind }) => data.new[kind].length).map(({ kind, heading, field, show }) => ({
    heading,
    table: new Table({
      caption: `New: ${heading}`,
      items: data.new[kind],
      search: searchBy(field),
      first: 20,
      columns: columns(
        wide(text(heading, (row) => row.key, show)),
        figure("Dumps", (row) => row.dumps),
        ofHosts(figure("Hosts", (row) => row.hosts)),
      ),
    }),
  }));
}
