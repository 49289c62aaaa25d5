// SPDX-License-Identifier: LGPL-2.1-or-later
// A table that sorts and filters all its rows but draws a part of them, with rows that open.

const collator = new Intl.Collator("en", { numeric: true });
const STEP = 200; // rows that "show more" adds

/**
 * columns: { label, value(item), cell(value, item), numeric, room }; rows are sorted by the value,
 *     which may be null, and the cell is what is shown of it; names need room.
 * search: the item's entry for the filter, or null for a table that is not filtered.
 * details: what an opened row shows, or null; then the first column's cell is the row's button.
 * pressed(item, open): called when a row's button was pressed.
 * first: how many rows are drawn at first.
 */
class Table {
  #spec;
  #head = make("tr", { role: "row" });
  #body = make("tbody", { role: "rowgroup" });
  #more;
  #order = null; // { column, descending }, or null: as the data are given
  #passing;
  #limit;
  #rows = new Map(); // drawn once, kept, so that what is open stays open

  constructor({ search = null, details = null, first = STEP, ...spec }) {
    this.#spec = { search, details, first, ...spec };
    this.#limit = first;
    this.#passing = spec.items;
    this.#head.append(...spec.columns.map((column) => this.#heading(column)));
    const table = make(
      "table",
      { role: "table", class: spec.kind ?? null },
      make("caption", { class: "unseen" }, spec.caption),
      make("thead", { role: "rowgroup" }, this.#head),
      this.#body,
    );
    this.#more = makeButton("", { class: "more" }, () => this.#showMore());
    this.element = make("div", { class: "table" }, table, this.#more);
    this.#draw();
  }

  get all() {
    return this.#spec.items.length;
  }

  get shown() {
    return this.#passing.length;
  }

  /** Keep the rows that pass. */
  apply(filter) {
    const { items, search } = this.#spec;
    const every = filter.isEmpty || search === null;
    this.#passing = every ? items : items.filter((item) => filter.passes(search(item)));
    this.#limit = this.#spec.first;
    this.#arrange();
  }

  /** Draw the row of an item and open it. Returns the row, or null if the filter hides it. */
  reveal(item) {
    const at = this.#passing.indexOf(item);
    if (at < 0) return null;
    if (at >= this.#limit) {
      this.#limit = at + 1;
      this.#draw();
    }
    const row = this.#row(item);
    if (this.#spec.details) this.#open(item, row, true);
    return row.element;
  }

  #heading(column) {
    const cell = make("th", {
      scope: "col",
      role: "columnheader",
      class: classOf(column),
    });
    cell.append(makeButton(column.label, {}, () => this.#sortBy(column)));
    return cell;
  }

  /** Numbers start with the largest, text with A; the second press turns, the third undoes it. */
  #sortBy(column) {
    const start = Boolean(column.numeric);
    if (this.#order?.column !== column) this.#order = { column, descending: start };
    else if (this.#order.descending === start) this.#order = { column, descending: !start };
    else this.#order = null;
    this.#spec.columns.forEach((each, index) => {
      const cell = this.#head.children[index];
      if (each !== this.#order?.column) cell.removeAttribute("aria-sort");
      else cell.setAttribute("aria-sort", this.#order.descending ? "descending" : "ascending");
    });
    this.apply(current.filter);
  }

  #arrange() {
    if (this.#order) {
      const { column, descending } = this.#order;
      const turn = descending ? -1 : 1;
      const keyed = this.#passing.map((item) => [column.value(item), item]);
      keyed.sort(([a], [b]) => compare(a, b, turn));
      this.#passing = keyed.map(([, item]) => item);
    }
    this.#draw();
  }

  #draw() {
    const drawn = this.#passing.slice(0, this.#limit).map((item) => this.#row(item));
    this.#body.replaceChildren(
      ...drawn.flatMap((row) => (row.details ? [row.element, row.details] : [row.element])),
    );
    const left = this.#passing.length - drawn.length;
    this.#more.hidden = left === 0;
    this.#more.textContent = `Show ${number(Math.min(left, STEP))} more of ${number(left)}`;
  }

  #showMore() {
    const next = this.#passing[this.#limit];
    this.#limit += STEP;
    this.#draw();
    // The button moves away or disappears: go on at the first new row.
    const target = this.#row(next).element.querySelector("a, button");
    (target ?? this.#more).focus({ preventScroll: true });
  }

  #row(item) {
    let row = this.#rows.get(item);
    if (!row) {
      row = { element: make("tr", { role: "row" }), details: null, button: null };
      row.element.append(
        ...this.#spec.columns.map((column, i) => this.#cell(item, row, column, i)),
      );
      this.#rows.set(item, row);
    }
    return row;
  }

  #cell(item, row, column, index) {
    const value = column.value(item);
    let content = value === null ? "\u2013" : column.cell(value, item);
    if (index === 0 && this.#spec.details) {
      row.button = makeButton(content, { class: "opener", "aria-expanded": "false" }, () => {
        this.#open(item, row, row.details === null);
        this.#spec.pressed?.(item, row.details !== null);
      });
      content = row.button;
    }
    return make(
      index === 0 ? "th" : "td",
      {
        role: index === 0 ? "rowheader" : "cell",
        scope: index === 0 ? "row" : null,
        class: classOf(column),
        "data-label": column.label,
      },
      content,
    );
  }

  #open(item, row, wanted) {
    if (wanted === (row.details !== null)) return;
    row.button.setAttribute("aria-expanded", String(wanted));
    row.element.classList.toggle("opened", wanted);
    if (wanted) {
      const span = String(this.#spec.columns.length);
      const cell = make("td", { role: "cell", colspan: span }, this.#spec.details(item));
      row.details = make("tr", { role: "row", class: "details" }, cell);
      row.element.after(row.details);
    } else {
      row.details.remove();
      row.details = null;
    }
  }
}

function classOf({ numeric, room = null }) {
  return numeric ? "number" : room;
}

/** Nothing comes last in both directions. */
function compare(a, b, turn) {
  if (a === null || b === null) return (a === null) - (b === null);
  return turn * (typeof a === "number" ? a - b : collator.compare(a, b));
}
