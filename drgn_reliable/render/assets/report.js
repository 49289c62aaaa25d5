// SPDX-License-Identifier: LGPL-2.1-or-later
// The report itself: the overview, the sections, the filter and where the page is.
//
// The fragment says where that is: #TARGET or #TARGET?filter=WORDS. A target is a section, or
// group-ID, dump-ID or reason-ID.

const current = { target: "", filter: new Filter("") };
const sections = new Map(); // by id: { heading, apply(filter) }
const main = document.getElementById("main");
const nav = make("ul", {});

// Sections ---------------------------------------------------------------------------------------

/**
 * A section with its link; `list` is what of it is filtered and counted. Its id is not the fragment
 * that leads to it: the browser would go there by itself, too, and take the focus away.
 */
function addSection(id, title, intro, list, ...content) {
  const tally = make("span", { class: "tally" });
  const inNav = make("span", { class: "tally" });
  const none = make("p", { class: "none", hidden: "" }, "Nothing here passes the filter.");
  const heading = make("h2", { id: `${id}-title`, tabindex: "-1" }, title, " ", tally);
  const body = make("div", {}, content);
  main.append(
    make(
      "section",
      { id: `section-${id}`, "aria-labelledby": heading.id },
      heading,
      intro ? make("p", { class: "intro" }, intro) : null,
      none,
      body,
    ),
  );
  nav.append(make("li", {}, linkTo(id, title), " ", inNav));
  const section = {
    heading,
    apply(filter) {
      if (!list) return;
      list.apply(filter);
      if (!list.all) return; // nothing to count
      const part = filter.isEmpty ? "" : `${number(list.shown)} of `;
      tally.textContent = inNav.textContent = `${part}${number(list.all)}`;
      body.hidden = list.shown === 0;
      none.hidden = !body.hidden;
    },
  };
  section.apply(current.filter);
  sections.set(id, section);
}

function addTable(id, title, intro, table) {
  if (table.all) addSection(id, title, intro, table, table.element);
  return table;
}

const sum = (numbers) => numbers.reduce((total, each) => total + each, 0);

/** Lists that are filtered and counted as one. */
function together(lists) {
  return {
    get all() {
      return sum(lists.map((list) => list.all));
    },
    get shown() {
      return sum(lists.map((list) => list.shown));
    },
    apply(filter) {
      for (const list of lists) list.apply(filter);
    },
  };
}

// The picture ------------------------------------------------------------------------------------

const CHOICES = [
  { words: "blocking a patch", chosen: (group) => group.blocks.length > 0 },
  { words: "unreliable", chosen: (group) => group.kernel === "unreliable" },
  { words: "all", chosen: () => true },
].filter(({ chosen }) => data.groups.some(chosen));

function addPicture() {
  if (!CHOICES.length) return;
  const picture = new Picture(groupLink);
  let [{ chosen }] = CHOICES;
  const draw = (filter) =>
    picture.draw(
      data.groups.filter(
        (group) => chosen(group) && (filter.isEmpty || filter.passes(searchGroup(group))),
      ),
    );
  const choose = (choice) => {
    chosen = choice;
    draw(current.filter);
  };
  const radios = CHOICES.map(({ words, chosen: choice }, index) => {
    const checked = index ? null : "";
    const radio = make("input", { type: "radio", name: "choice", value: words, checked });
    radio.addEventListener("change", () => choose(choice));
    return make("label", {}, radio, ` ${words}`);
  });
  addSection(
    "picture",
    "Picture",
    "Each box is a function and the tasks in it, beneath it what it called. Press one to make it " +
      "as wide as the picture; arrow keys move, Enter zooms in, Escape out. A function that " +
      "calls itself is one box; boxes narrower than 0.2\u00a0% are left out.",
    { all: 0, shown: 0, apply: draw },
    make("fieldset", { class: "choices" }, make("legend", {}, "Tasks: "), radios),
    picture.element,
  );
}

// Where the page is ------------------------------------------------------------------------------

let groups, dumps; // their tables
const articles = new Map(); // of reasons, by their rows

function placeOf(target) {
  const at = target.indexOf("-");
  const id = decoded(target.slice(at + 1));
  switch (at < 0 ? "" : target.slice(0, at)) {
    case "group":
      return rowOf(groups, groupById.get(Number(id)));
    case "dump":
      return rowOf(dumps, dumpById.get(Number(id)));
    case "reason": {
      const article = [...articles].find(([row]) => row.reason === id)?.[1];
      return article ? () => (article.hidden ? null : article) : null;
    }
    default:
      return sections.has(target) ? () => sections.get(target).heading : null;
  }
}

const rowOf = (table, item) =>
  item && table.element.isConnected ? () => table.reveal(item) : null;

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // not from here
  }
}

/** Open what a target names; a filter that hides it is dropped. */
function reveal(target) {
  const place = placeOf(target);
  if (!place) {
    say(`There is no ${target} in this report.`);
    return null;
  }
  let element = place();
  if (!element) {
    narrow("");
    say("The filter was removed to show this.");
    element = place();
  }
  for (const old of document.querySelectorAll(".arrived")) old.classList.remove("arrived");
  element.classList.add("arrived");
  return element;
}

/** Where a fragment leads; a filter that it does not mention is null. */
function parsed(fragment) {
  const at = fragment.indexOf("?");
  const target = (at < 0 ? fragment : fragment.slice(0, at)).replace(/^#/, "");
  return { target, filter: at < 0 ? null : new URLSearchParams(fragment.slice(at)).get("filter") };
}

function address() {
  const { target, filter } = current;
  const tail = filter.isEmpty ? "" : `?filter=${encodeURIComponent(filter.text)}`;
  return location.href.split("#")[0] + (target || tail ? `#${target}${tail}` : "");
}

function arrive({ target, filter }, scroll) {
  clearTimeout(typing); // what was typed just before is known here
  say("");
  narrow(filter ?? "");
  current.target = target;
  const element = target ? reveal(target) : null;
  if (scroll !== null) scrollTo(0, scroll);
  else element?.scrollIntoView({ block: "start" });
  const inside = element?.querySelector(element.matches("tr") ? "button" : "h3[tabindex]");
  (inside ?? element)?.focus({ preventScroll: true });
}

// What the page was like where it was left, for the way back: how far it was scrolled, and what had
// the focus.
const left = new Map();

function remember() {
  const key = `${performance.timeOrigin}/${left.size}`;
  left.set(key, document.activeElement);
  history.replaceState({ key, scroll: scrollY }, "");
}

function follow(fragment) {
  const wanted = parsed(fragment);
  remember();
  arrive({ ...wanted, filter: wanted.filter ?? input.value }, null);
  history.pushState(null, "", address());
}

/** A row's button was pressed: the address leads to it now. */
function pressedAt(target, open) {
  current.target = open ? target : "";
  history.replaceState(history.state, "", address());
}

function listen() {
  history.scrollRestoration = "manual";
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#']");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    follow(link.getAttribute("href"));
  });
  addEventListener("popstate", ({ state }) => {
    arrive(parsed(location.hash), state ? state.scroll : null);
    const before = left.get(state?.key);
    if (before?.isConnected) before.focus({ preventScroll: true });
  });
  addEventListener("pagehide", remember);
}

// The filter -------------------------------------------------------------------------------------

const input = make("input", {
  type: "search",
  id: "filter",
  placeholder: "Filter",
  "aria-label": "Filter the whole report",
  "aria-describedby": "filter-help",
  autocomplete: "off",
  spellcheck: "false",
});
const shown = make("span", { id: "shown", role: "status" });
const clear = makeButton("Clear", { hidden: "" }, () => {
  follow("#?filter=");
  input.focus();
});
let said = "";
let typing = 0; // the timer that waits for a pause

/** Show only what passes. */
function narrow(words) {
  const filter = new Filter(words);
  if (input.value.trim() !== filter.text) input.value = words;
  if (filter.text === current.filter.text) return;
  current.filter = filter;
  clear.hidden = filter.isEmpty;
  for (const section of sections.values()) section.apply(filter);
  tell();
}

function say(words) {
  said = words;
  tell();
}

function tell() {
  const part = ({ shown, all }, one) =>
    current.filter.isEmpty ? count(all, one) : `${number(shown)} of ${count(all, one)}`;
  const parts = [part(groups, "stack"), ...(ofFleet ? [part(dumps, "dump")] : [])];
  shown.textContent = `${said} ${parts.join(", ")}`.trim();
}

function addBar() {
  const typed = () => {
    said = "";
    narrow(input.value);
    current.target = "";
    history.replaceState(history.state, "", address());
  };
  input.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(typed, 120);
  });
  document.getElementById("bar").append(input, clear, shown);
}

// All of it --------------------------------------------------------------------------------------

function addHead() {
  const about = `made ${moment(data.made)}, drgn-reliable ${data.version}`;
  document
    .getElementById("top")
    .append(
      make("h1", {}, nameOf(data.title)),
      make("p", {}, `Are the kernel stack traces reliable? Report ${about}.`),
    );
  const help =
    "Words: all must be found. Or FIELD=VALUE, which must be equal; the fields are " +
    `${[...FIELDS].join(", ")}. What has spaces goes in double quotes.`;
  document
    .getElementById("nav")
    .append(
      nav,
      make(
        "details",
        {},
        make("summary", {}, "How to filter"),
        make("p", { id: "filter-help" }, help),
      ),
    );
}

function addOverview() {
  addSection("overview", "Overview", null, null, [
    make("p", { class: "headline" }, headline()),
    cautions(),
    tiles(),
    ofFleet ? null : data.dumps.map(dumpDetails),
  ]);
}

function addBlocking() {
  const what = "Tasks that hold up a livepatch, by what they are in and why.";
  addTable("blocking", "What blocks", what, blockingTable());
  const transitions = addTable("transitions", "Transitions", null, transitionsTable());
  if (data.transitions.length === 1) transitions.reveal(data.transitions[0]);
}

function addFailed() {
  const items = data.dumps.filter((dump) => dump.status !== "whole");
  items.sort((a, b) => (b.status === "failed") - (a.status === "failed"));
  addTable("failed", "Not read whole", null, failedTable(items));
}

function addReasons() {
  const table = reasonsTable();
  if (!table.all) return;
  for (const row of data.by_reason) articles.set(row, reasonArticle(row));
  const sections = {
    all: 0,
    shown: 0,
    apply(filter) {
      for (const [row, article] of articles) {
        article.hidden = !filter.isEmpty && !filter.passes(searchReason(row));
      }
    },
  };
  const list = together([table, sections]);
  addSection("reasons", "Reasons", null, list, table.element, [...articles.values()]);
}

function addStacks() {
  const what =
    "Tasks with the same stack and the same verdicts are one row; open it for the stack and the " +
    "tasks. The filter finds a stack by the tasks that are listed.";
  groups = addTable("stacks", "Stacks", what, groupsTable());
}

function addFigures() {
  const figures = [
    ["kernels", "Kernels", "Kernel", "release", data.by_release],
    ["architectures", "Architectures", "Architecture", "architecture", data.by_architecture],
    ["hosts", "Hosts", "Host", "host", data.by_host],
    ["labels", "Labels", "Label", "label", data.by_label],
  ];
  for (const [id, title, label, field, items] of ofFleet ? figures : []) {
    addTable(id, title, null, figuresTable(title, label, field, items));
  }
  const what = "Where the tasks with unreliable stacks are.";
  addTable("functions", "Functions", what, functionsTable());
}

function addDumps() {
  dumps = dumpsTable();
  if (!ofFleet) return; // the overview has all about the one
  addTable("dumps", "Dumps", null, dumps);
  addTable("passed-over", "Passed over", "Files that are no dumps.", passedOverTable());
}

function addNew() {
  const tables = data.new ? newTables() : [];
  if (!tables.length) return;
  const what = ["What was not there before, compared with ", phrase(data.new.since), "."];
  const list = together(tables.map(({ table }) => table));
  addSection(
    "new",
    "New",
    what,
    list,
    tables.map(({ heading, table }) => [make("h3", {}, heading), table.element]),
  );
}

function drawReport() {
  addHead();
  addOverview();
  addBlocking();
  addFailed();
  addPicture();
  addReasons();
  addStacks();
  addFigures();
  addDumps();
  addNew();
  if (ofFleet) addTable("scans", "Scans", null, scansTable());
  addBar();
  document.getElementById("drawing").remove();
  listen();
  arrive(parsed(location.hash), history.state?.scroll ?? null);
}

drawReport();
