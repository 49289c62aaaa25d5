// SPDX-License-Identifier: LGPL-2.1-or-later
// What everything else uses: the data, elements, words and numbers.
//
// Names of processes, functions and files come from the dumps and may be hostile. They become text
// nodes and attribute values, never markup; what is looked up by such a name is in a Map.

const data = JSON.parse(document.getElementById("data").textContent);
const ofFleet = !data.one_dump;

// Copies of one dump have the same number: each is in the list, and links lead to the first.
const copiesOf = new Map();
for (const dump of data.dumps) copiesOf.set(dump.id, [...(copiesOf.get(dump.id) ?? []), dump]);
const dumpById = new Map([...copiesOf].map(([id, [first]]) => [id, first]));
const groupById = new Map(data.groups.map((group) => [group.id, group]));
const kindOf = new Map(Object.entries(data.reasons)); // what the catalogue says of a reason

/** An element; children are elements or text, and null is left out. */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null));
  return element;
}

function makeButton(text, attributes, pressed) {
  const button = make("button", { type: "button", ...attributes }, text);
  button.addEventListener("click", pressed);
  return button;
}

/** A name from a dump: in one direction whatever its letters, in a face that tells 0 from O. */
function nameOf(text) {
  return make("bdi", { dir: "ltr", class: "name" }, text === "" ? "(empty)" : text);
}

/** Words that may have names in them: in one direction, too, apart from what is around them. */
function phrase(words) {
  return make("bdi", { dir: "ltr" }, words);
}

/** Elements with something between them. */
function joined(elements, between = ", ") {
  return elements.flatMap((element, number) => (number ? [between, element] : [element]));
}

const grouped = new Intl.NumberFormat("en");

function number(value) {
  return grouped.format(value);
}

/** A number of things: "1 dump", "3 dumps". */
function count(value, one, more = `${one}s`) {
  return `${number(value)} ${value === 1 ? one : more}`;
}

function percent(part, whole) {
  if (!whole) return "0 %";
  const value = (100 * part) / whole;
  return `${value > 0 && value < 10 ? value.toFixed(1) : Math.round(value)} %`;
}

function duration(seconds) {
  if (seconds > 0 && seconds < 0.1) return "< 0.1 s";
  if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 100) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function size(bytes) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; bytes >= 1024 && unit < units.length - 1; unit++) bytes /= 1024;
  return `${unit && bytes < 10 ? bytes.toFixed(1) : number(Math.round(bytes))} ${units[unit]}`;
}

/** An instant as people read it; what is no instant stays as it is. */
function moment(iso) {
  const found = /^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|\+00:00)$/.exec(iso);
  return found ? `${found[1]} ${found[2]} UTC` : iso;
}

/** Pairs of a term and what it stands for; those that stand for nothing are left out. */
function facts(pairs) {
  const list = make("dl", { class: "facts" });
  for (const [term, meaning] of pairs) {
    if (meaning === null || meaning === "" || meaning.length === 0) continue;
    list.append(make("div", {}, make("dt", {}, term), make("dd", {}, meaning)));
  }
  return list;
}
