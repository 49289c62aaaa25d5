// SPDX-License-Identifier: LGPL-2.1-or-later
// The overview: one sentence that answers, what has to be known before it is believed, and totals.

const { totals } = data;

const verb = (value, one, more) => (value === 1 ? one : more);

/** Where a row of the blocking table is: hosts by their names, if they are few. */
function whereBlocked(row) {
  if (!row.hosts) return ` in ${count(row.dumps, "dump")}`;
  if (row.hosts > FEW) return ` on ${count(row.hosts, "host")}`;
  return [" on ", joined(row.host_names.map(hostLink))];
}

/** "eventfd_read blocks klp_fix on web1, web2". */
function whatBlocks(row) {
  const where = whereBlocked(row);
  const what = [nameOf(row.patch), ofFleet ? where : ` (${count(row.tasks, "task")})`];
  if (row.decision === "sleeping" && row.function) return [nameOf(row.function), " blocks ", what];
  const reason = row.reason ? [" (", reasonLink(row.reason), ")"] : [];
  if (row.decision === "unreliable") return ["unreliable stacks", reason, " block ", what];
  return ["tasks on a CPU block ", what];
}

function stalledHeadline() {
  const { stalled, dumps } = totals;
  const have = `${verb(stalled, "has", "have")} a stalled livepatch transition`;
  const first = ofFleet
    ? `${number(stalled)} of ${count(dumps, "dump")} ${have}`
    : "The livepatch transition is stalled";
  const [row, ...others] = data.blocking;
  if (!row) return [first, "."];
  const link = linkTo("blocking", count(others.length, "more cause"));
  const more = others.length ? [`, and there ${verb(others.length, "is", "are")} `, link] : [];
  return [first, ": ", whatBlocks(row), more, "."];
}

function headline() {
  if (!totals.dumps) return "No dump was found.";
  if (totals.stalled) return stalledHeadline();
  if (!totals.tasks) return `No task of ${ofFleet ? "any" : "the"} dump could be read.`;
  const bad = totals.kernel.unreliable;
  const tasks = `${number(bad)} of ${count(totals.tasks, "task")}`;
  const have = verb(bad, "has an unreliable stack", "have unreliable stacks");
  return `No livepatch transition is stalled; ${tasks} ${have}.`;
}

/** What has to be known before the figures are believed. */
function cautions() {
  const abouts = [
    aboutScan,
    aboutFailed,
    aboutIncomplete,
    aboutUnsupported,
    aboutLeftOut,
    aboutNew,
  ];
  const found = abouts
    .map((about) => about())
    .filter((line) => line !== null)
    .map((line) => make("li", {}, line));
  return found.length ? make("ul", { class: "cautions" }, found) : null;
}

function aboutScan() {
  const state = data.scans.at(-1)?.state ?? "finished";
  if (state === "finished") return null;
  const said = state === "running" ? "is still running" : "was interrupted";
  return `The last scan ${said}: the figures are of what it has done so far.`;
}

function aboutFailed() {
  const { failed } = totals;
  if (!failed) return null;
  const link = linkTo(
    "failed",
    `${ofFleet ? count(failed, "dump") : "The dump"} could not be read`,
  );
  return [link, ofFleet ? `: no figure counts what is in ${verb(failed, "it", "them")}.` : "."];
}

function aboutIncomplete() {
  const { incomplete } = totals;
  if (!incomplete) return null;
  const some = ofFleet ? count(incomplete, "dump") : "The dump";
  return [linkTo("failed", `${some} ${verb(incomplete, "was", "were")} read in part`), "."];
}

function aboutUnsupported() {
  const { unsupported } = totals.kernel;
  if (!unsupported) return null;
  const tasks = `${count(unsupported, "task")} ${verb(unsupported, "is", "are")}`;
  return `${tasks} of kernels that have no reliable stack trace: unsupported.`;
}

function aboutLeftOut() {
  const out = data.groups_left_out;
  if (!out) return null;
  return `${count(out, "stack")} did not fit in; all totals count ${verb(out, "it", "them")}.`;
}

function aboutNew() {
  if (!data.new) return null;
  const some = ["reason", "function", "stack", "release"]
    .map((kind) => [data.new[`${kind}s`].length, kind])
    .filter(([found]) => found)
    .map(([found, kind]) => count(found, kind));
  if (!some.length) return null;
  return [linkTo("new", ["New since ", phrase(data.new.since)]), `: ${some.join(", ")}.`];
}

/** A total and its parts; a part leads to what it counts. */
function tile(title, total, parts) {
  const items = parts.map(({ words, value, target, filter = null }) => {
    const content = [make("b", {}, number(value)), ` ${words}`];
    return make("li", {}, value ? linkTo(target, content, filter) : content);
  });
  return make("div", { class: "tile" }, [
    make("h3", {}, title),
    make("p", { class: "total" }, total),
    make("ul", {}, items),
  ]);
}

/** Parts that are the words of one field. */
function partsOf(field, target, counts, words) {
  return words.map((word) => ({
    words: word,
    value: counts[word],
    target,
    filter: filterFor(field, word),
  }));
}

function tiles() {
  const tasks = count(totals.tasks, "task");
  const kernel = ["unreliable", "running", "unsupported", "reliable"];
  const proof = ["refuted", "undecided", "proven"];
  return make(
    "div",
    { class: "tiles" },
    ofFleet ? transitionsTile() : null,
    tile("Kernel\u2019s verdict", tasks, partsOf("kernel", "stacks", totals.kernel, kernel)),
    tile("Proof from the dump", tasks, partsOf("proof", "stacks", totals.proof, proof)),
    ofFleet ? dumpsTile() : null,
  );
}

function transitionsTile() {
  const causes = data.blocking.length;
  const going = data.transitions.filter((transition) => !transition.stalled).length;
  return tile("Stalled transitions", number(totals.stalled), [
    { words: verb(causes, "cause", "causes"), value: causes, target: "blocking" },
    { words: "going on", value: going, target: "transitions" },
  ]);
}

function dumpsTile() {
  const { hosts, releases } = totals;
  const known = { words: verb(hosts, "host", "hosts"), value: hosts, target: "hosts" };
  return tile("Dumps", number(totals.dumps), [
    ...partsOf("status", "dumps", totals, ["failed", "incomplete", "whole"]),
    ...(hosts ? [known] : []),
    { words: verb(releases, "kernel", "kernels"), value: releases, target: "kernels" },
  ]);
}
