// SPDX-License-Identifier: LGPL-2.1-or-later
// The picture of all stacks: a box for each function, beneath it what it called, as wide as the
// tasks that are in it are many. Outermost functions are on top.

const NARROWEST = 0.002; // of the picture; narrower boxes are left out
const LEVELS = 150; // beneath the box that fills the picture
const SHADES = [0, 0.25, 0.75, 0.9999, 1]; // upper ends, of the share of unreliable tasks

/** The calls of some groups as a tree. A function that calls itself is one node. */
function callTree(groups) {
  const root = newNode("all tasks", null);
  for (const group of groups) {
    let node = root;
    addTo(node, group);
    for (let i = group.frames.length - 1; i >= 0; i--) {
      const name = group.frames[i];
      if (name === node.name && node !== root) continue;
      if (!node.children.has(name)) node.children.set(name, newNode(name, node));
      node = node.children.get(name);
      addTo(node, group);
    }
  }
  return root;
}

function newNode(name, parent) {
  return { name, parent, tasks: 0, unreliable: 0, groups: [], children: new Map() };
}

function addTo(node, group) {
  node.tasks += group.tasks;
  node.groups.push(group);
  if (group.kernel === "unreliable") node.unreliable += group.tasks;
}

/** What is drawn: boxes with their level, left edge and width, both as parts of the whole. */
function boxesOf(zoomed, narrowest) {
  const boxes = [];
  for (let node = zoomed.parent; node; node = node.parent) {
    boxes.unshift({ node, left: 0, width: 1 });
  }
  boxes.forEach((box, level) => (box.level = level));
  let level = boxes.length;
  let row = [{ node: zoomed, level, left: 0, width: 1 }];
  const last = level + LEVELS;
  while (row.length && level++ < last) {
    boxes.push(...row);
    row = row.flatMap((box) => boxesBeneath(box, level, narrowest));
  }
  return boxes;
}

function boxesBeneath({ node, left, width }, level, narrowest) {
  const beneath = [];
  for (const child of [...node.children.values()].sort((a, b) => b.tasks - a.tasks)) {
    const part = (width * child.tasks) / node.tasks;
    if (part >= narrowest) beneath.push({ node: child, level, left, width: part });
    left += part;
  }
  return beneath;
}

class Picture {
  #boxes = make("div", {
    class: "boxes",
    role: "tree",
    "aria-label": "Calls, the outermost on top",
  });
  #said = make("p", { class: "said" });
  #stacks = make("p", { class: "stacks" });
  #out = makeButton("Zoom out", {}, () => this.#zoom(this.#zoomed.parent));
  #root = callTree([]);
  #zoomed = this.#root;
  #focused = this.#root; // the box that Tab comes to
  #level = 0; // of the box that is zoomed to
  #drawn = []; // boxes with their buttons
  #linkTo;

  /** linkTo(group) makes a link to a group. */
  constructor(linkTo) {
    this.#linkTo = linkTo;
    const legend = make(
      "p",
      { class: "legend" },
      "Unreliable: ",
      ["none", "up to 25 %", "up to 75 %", "more", "all"].map((text, shade) =>
        make("span", { class: `swatch shade-${shade}` }, text),
      ),
    );
    const line = make("div", { class: "line" }, this.#said, this.#out);
    this.element = make("div", { class: "picture" }, legend, line, this.#stacks, this.#boxes);
    this.#boxes.addEventListener("keydown", (event) => this.#press(event));
    this.#boxes.addEventListener("focusin", (event) => this.#focus(this.#boxAt(event.target)));
    this.#boxes.addEventListener("mouseover", (event) => this.#say(this.#boxAt(event.target)));
    this.#boxes.addEventListener("mouseleave", () => this.#say(null));
    this.#boxes.addEventListener("click", (event) => {
      const box = this.#boxAt(event.target);
      if (box) this.#zoom(box.node);
    });
    new ResizeObserver(() => this.#place()).observe(this.element);
  }

  draw(groups) {
    this.#root = this.#zoomed = this.#focused = callTree(groups);
    this.#redraw();
  }

  #boxAt(element) {
    return this.#drawn.find((box) => box.button === element) ?? null;
  }

  #zoom(node) {
    if (!node || !node.tasks) return;
    const inside = this.#boxes.contains(document.activeElement);
    this.#zoomed = this.#focused = node;
    this.#redraw();
    if (inside) this.#drawn.find((box) => box.node === node).button.focus();
  }

  #redraw() {
    this.#drawn = this.#root.tasks ? boxesOf(this.#zoomed, NARROWEST) : [];
    this.#level = this.#drawn.findIndex((box) => box.node === this.#zoomed); // one box a level
    for (const box of this.#drawn) box.button = this.#buttonFor(box);
    this.#boxes.replaceChildren(...this.#drawn.map((box) => box.button));
    this.#out.disabled = this.#zoomed === this.#root;
    this.#place();
    this.#say(null);
    this.#listStacks();
  }

  #buttonFor({ node, level }) {
    const share = node.unreliable / node.tasks;
    const shade = SHADES.findIndex((upper) => share <= upper);
    const button = make("button", {
      type: "button",
      role: "treeitem",
      class: `shade-${shade}${level < this.#level ? " above" : ""}`,
      tabindex: node === this.#focused ? "0" : "-1",
      "aria-level": String(level + 1),
      "aria-label": this.#describe(node),
    });
    button.append(make("bdi", { dir: "ltr" }, this.#title(node)));
    return button;
  }

  #place() {
    const height = 22;
    const deepest = Math.max(-1, ...this.#drawn.map((box) => box.level));
    this.#boxes.style.height = `${(deepest + 1) * height}px`;
    const whole = this.#boxes.clientWidth;
    for (const { button, level, left, width } of this.#drawn) {
      button.style.top = `${level * height}px`;
      button.style.left = `${100 * left}%`;
      button.style.width = `${100 * width}%`;
      button.classList.toggle("narrow", width * whole < 24);
    }
  }

  #title(node) {
    return node === this.#root ? count(node.tasks, "task") : node.name;
  }

  #describe(node) {
    const all = this.#root.tasks;
    const bad = node.unreliable
      ? `${number(node.unreliable)} unreliable (${percent(node.unreliable, node.tasks)})`
      : "none unreliable";
    if (node === this.#root)
      return `${count(all, "task")} in ${count(node.groups.length, "stack")}, ${bad}`;
    const share = `${percent(node.tasks, all)} of those drawn`;
    return `${node.name}: ${count(node.tasks, "task")}, ${share}; ${bad}`;
  }

  #say(box) {
    const node = box?.node ?? this.#focused;
    this.#said.replaceChildren(
      this.#root.tasks ? make("bdi", { dir: "ltr" }, this.#describe(node)) : "No stack to draw.",
    );
  }

  #focus(box) {
    if (!box) return;
    for (const { button } of this.#drawn) button.tabIndex = -1;
    box.button.tabIndex = 0;
    this.#focused = box.node;
    this.#say(box);
  }

  #listStacks() {
    const groups = this.#zoomed === this.#root ? [] : [...this.#zoomed.groups];
    groups.sort((a, b) => b.tasks - a.tasks);
    const links = groups.slice(0, 8).map(this.#linkTo);
    const rest = groups.length > 8 ? ` and ${number(groups.length - 8)} more` : "";
    this.#stacks.replaceChildren(
      ...(links.length
        ? ["Its stacks: ", ...joined(links), rest]
        : ["Zoom in for the stacks of a box."]),
    );
  }

  #press(event) {
    const at = this.#boxAt(event.target);
    if (!at || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape") {
      if (this.#zoomed === this.#root) return;
      this.#zoom(this.#zoomed.parent);
    } else {
      const next = this.#neighbour(at, event.key);
      if (next === undefined) return;
      next?.button.focus();
    }
    event.preventDefault();
  }

  /** Where a key leads: undefined if it leads nowhere at all, null if there is no box. */
  #neighbour(at, key) {
    const level = this.#drawn.filter((box) => box.level === at.level);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (step) return level[level.indexOf(at) + step] ?? null;
    if (key === "ArrowUp") return this.#drawn.find((box) => box.node === at.node.parent) ?? null;
    if (key === "ArrowDown") return this.#drawn.find((box) => box.node.parent === at.node) ?? null;
    if (key === "Home") return this.#drawn[0];
    return undefined;
  }
}
