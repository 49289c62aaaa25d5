// SPDX-License-Identifier: LGPL-2.1-or-later
// The filter: words that must all be there, or FIELD=VALUE, which must be equal.

const FIELDS = new Set([
  "architecture",
  "cause",
  "function",
  "host",
  "in",
  "kernel",
  "label",
  "patch",
  "proof",
  "reason",
  "release",
  "status",
  "transition",
]);

class Filter {
  constructor(text) {
    this.text = text.trim();
    // A word; in double quotes it may have spaces, and a quote is doubled.
    const words = this.text.match(/(?:[^\s"]|"(?:[^"]|"")*"?)+/g) ?? [];
    this.terms = words
      .map(unquoted)
      .map(asTerm)
      .filter(({ field, text }) => field !== null || text);
  }

  get isEmpty() {
    return this.terms.length === 0;
  }

  /** Whether something passes, of which an entry says what it is found by. */
  passes(entry) {
    return this.terms.every(({ field, text }) =>
      field === null ? entry.text.includes(text) : (entry.fields[field] ?? []).includes(text),
    );
  }
}

function unquoted(word) {
  return word.replace(/"((?:[^"]|"")*)"?/g, (_, inner) => inner.replaceAll('""', '"'));
}

function asTerm(word) {
  const text = word.toLowerCase();
  const at = text.indexOf("=");
  const field = text.slice(0, Math.max(at, 0));
  return FIELDS.has(field) ? { field, text: text.slice(at + 1) } : { field: null, text };
}

/** The filter that a field has a value, as it is typed. */
function filterFor(field, value) {
  return `${field}=${/[\s"]|^$/.test(value) ? `"${value.replaceAll('"', '""')}"` : value}`;
}

/** What something is found by: words anywhere in it, and values of fields. */
function entryOf(words, fields) {
  const lower = (values) =>
    values.filter((value) => value !== null).map((value) => String(value).toLowerCase());
  return {
    text: lower([...words, ...Object.values(fields).flat()]).join("\n"),
    fields: Object.fromEntries(Object.entries(fields).map(([name, all]) => [name, lower(all)])),
  };
}

// Entries are made when something is first searched: of a large fleet they are megabytes.

function remembered(describe) {
  const entries = new WeakMap();
  return (item) => {
    if (!entries.has(item)) entries.set(item, describe(item));
    return entries.get(item);
  };
}

const stalledIf = (condition) => (condition ? ["stalled"] : []);
const labelsOf = (dump) => Object.entries(dump.labels).map(([name, value]) => `${name}=${value}`);
const transitionsOf = (dump) => data.transitions.filter((each) => each.dump === dump.id);

const searchDump = remembered((dump) =>
  entryOf([dump.path, dump.unwinder, dump.detail, ...dump.problems], {
    architecture: [dump.architecture],
    cause: [dump.cause],
    host: [dump.host],
    kernel: dump.unreliable ? ["unreliable"] : [],
    label: labelsOf(dump),
    patch: transitionsOf(dump).map((transition) => transition.patch),
    release: [dump.release],
    transition: stalledIf(dump.stalled),
    status: [dump.status],
  }),
);

const searchGroup = remembered((group) => {
  const ids = [...new Set(group.examples.map((task) => task.dump))];
  const dumps = ids.flatMap((id) => copiesOf.get(id) ?? []);
  const tasks = group.examples.flatMap((task) => [task.comm, task.pid, task.task]);
  return entryOf([group.hash, ...tasks, ...dumps.map((dump) => dump.path)], {
    architecture: dumps.map((dump) => dump.architecture),
    function: group.frames,
    host: dumps.map((dump) => dump.host),
    in: [group.in],
    kernel: [group.kernel],
    label: dumps.flatMap(labelsOf),
    patch: group.blocks,
    proof: [group.proof],
    reason: group.reasons,
    release: group.releases,
    transition: stalledIf(group.blocks.length > 0),
  });
});

const searchBlocking = remembered((row) =>
  entryOf([row.decision, row.module], {
    function: [row.function],
    host: row.host_names,
    in: [row.function],
    kernel: row.decision === "sleeping" ? [] : [row.decision],
    patch: [row.patch],
    reason: [row.reason],
    transition: ["stalled"],
  }),
);

const searchTransition = remembered((transition) => {
  const dump = dumpById.get(transition.dump);
  const its = dump ? searchDump(dump) : entryOf([], {});
  const own = entryOf(transition.advice, {
    patch: [transition.patch],
    transition: stalledIf(transition.stalled),
  });
  return { text: `${its.text}\n${own.text}`, fields: { ...its.fields, ...own.fields } };
});

const searchReason = remembered((row) => {
  const kind = kindOf.get(row.reason);
  return entryOf([kind?.title ?? null, kind?.remedy ?? null, kind?.decided_by ?? null], {
    kernel: kind?.kernel ? ["unreliable"] : [],
    reason: [row.reason],
    release: row.releases,
  });
});

const searchPassedOver = remembered((row) => entryOf([row.path, row.why], {}));

/** For tables of figures by something. */
function searchBy(field) {
  return remembered((row) =>
    entryOf([], {
      [field]: [row[field] ?? row.key],
      kernel: row.unreliable === 0 ? [] : ["unreliable"],
      transition: stalledIf(row.stalled),
      status: row.failed ? ["failed"] : [],
    }),
  );
}
