// Charts: views behind a switch, one legend for all charts, what a point says, and the numbers as a table.

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== "") made.textContent = text;
  return made;
}

function button(className, text, onPress) {
  const made = element("button", className, text);
  made.type = "button";
  made.addEventListener("click", onPress);
  return made;
}

function markSvg(look) {
  const svg = shape("svg", { class: "mark", viewBox: "-9 -9 18 18", "aria-hidden": "true" });
  svg.append(shape("path", { d: look.mark, fill: look.hollow ? "none" : look.colour, stroke: look.colour,
    "stroke-width": look.hollow ? 2.4 : 0.8 }));
  return svg;
}

// the groups that are looked at, in all charts and tables; none: all are
const selection = new Set();
const isShown = (group) => selection.size === 0 || selection.has(group);
const charts = [];

function select(group) {
  if (group === null) selection.clear();
  else if (!selection.delete(group)) selection.add(group);
  for (const chart of charts) chart.refresh();
  for (const row of document.querySelectorAll("tr[data-group]")) row.classList.toggle("faded", !isShown(row.dataset.group));
}

class Chart {
  constructor(data) {
    this.data = data;
    this.section = document.getElementById(data.name);
    this.looks = Object.fromEntries(data.looks.map((look) => [look.group, look]));
    this.label = data.views[0]?.label;
    this.choice = { length: null, rule: null };
    this.plot = this.find("plot");
    this.keys = {};
    this.tip = element("div", "tip");
    this.tip.setAttribute("role", "status");
    this.details = this.find("numbers");
    this.details.addEventListener("toggle", () => this.details.open && this.tabulate());
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerdown", (event) => this.point(event));
    // a finger that is lifted leaves too, and its reader has yet to read
    this.plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.quiet());
    document.addEventListener("pointerdown", (event) => this.plot.contains(event.target) || this.quiet());
    this.plot.addEventListener("keydown", (event) => this.step(event));
    new ResizeObserver(() => this.plot.clientWidth !== this.width && this.draw()).observe(this.plot);
    this.choose(null, null);
  }

  find(name) {
    return this.section.querySelector("." + name);
  }

  // the views that stand under a length and a rule
  choose(length, rule) {
    const fits = (view) => (view.length === null || view.length === length) && (view.rule === null || view.rule === rule);
    const any = this.data.views.filter(fits);
    this.views = any.length ? any : this.data.views.filter((view) => view.rule === (rule ?? view.rule) && view.length === this.data.views[0].length);
    const labels = this.views.map((view) => view.label);
    if (!labels.includes(this.label)) this.label = labels[0];
    this.find("switch").replaceChildren(...(labels.length > 1 ? labels : []).map((label) =>
      button("", label, () => { this.label = label; this.show(); })));
    this.show();
  }

  show() {
    this.view = this.views.find((view) => view.label === this.label) ?? this.views[0];
    for (const one of this.find("switch").children) one.setAttribute("aria-pressed", String(one.textContent === this.label));
    const groups = new Set(this.view.data.map((series) => series.group));
    this.keys = {};
    const made = this.data.looks.filter((look) => groups.has(look.group)).map((look) => {
      const key = button("key", "", () => select(look.group));
      key.append(markSvg(look), element("span", "name", look.label));
      this.keys[look.group] = key;
      return key;
    });
    this.all = button("key all", "Show all", () => { select(null); made[0]?.focus(); });
    this.find("keys").replaceChildren(...made, this.all);
    if (this.details.open) this.tabulate();
    this.refresh();
  }

  refresh() {
    for (const [group, key] of Object.entries(this.keys)) key.setAttribute("aria-pressed", String(selection.has(group)));
    this.find("keys").classList.toggle("chosen", selection.size > 0);
    this.all.hidden = selection.size === 0;
    this.draw();
  }

  draw(width = this.plot.clientWidth, least = undefined) {
    if (!width) return;
    this.width = width;
    const { svg, drawn } = draw(this.view, this.looks, width, isShown, least);
    this.points = drawn.map(({ at, series, look }) => ({ at, series, look }));
    this.at = [0, -1];
    svg.setAttribute("aria-label", [this.data.title, this.view.label].filter(Boolean).join(": ") + ". Arrow keys read its points.");
    svg.setAttribute("aria-describedby", this.data.name + "-summary");
    document.getElementById(this.data.name + "-summary").textContent = this.view.summary;
    this.find("vertical").textContent = this.view.vertical;
    const { low, high } = this.view.vertical_axis;
    const far = (title, fits) => {
      const names = this.view.levels.filter(([score]) => fits(score)).map(([, name]) => name);
      return names.length ? `${title} the plot: ${names.join(", ")}. ` : "";
    };
    this.find("beyond").textContent = far("Above", (score) => score > high) + far("Below", (score) => score < low);
    const hadFocus = this.plot.contains(document.activeElement);
    this.plot.replaceChildren(svg, this.tip);
    this.quiet();
    if (hadFocus) svg.focus();
  }

  // what stands nearest to the pointer
  point(event) {
    const frame = this.plot.getBoundingClientRect();
    let best = null;
    for (const one of this.points) one.at.forEach(([x, y], i) => {
      const far = Math.hypot(x - event.clientX + frame.left, y - event.clientY + frame.top);
      if (far < 40 && (best === null || far < best.far)) best = { far, one, i };
    });
    if (best) this.tell(best.one, best.i);
    else this.quiet();
  }

  step(event) {
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (event.key === "Escape") this.quiet();
    if (!move || !this.points.length) return;
    event.preventDefault();
    const line = (this.at[0] + move[0] + this.points.length) % this.points.length;
    const one = this.points[line];
    const i = Math.min(one.at.length - 1, Math.max(0, this.at[1] + move[1]));
    // a series of one point is left to the side as well
    const isEnd = move[1] && i === this.at[1];
    this.at = isEnd ? [(line + move[1] + this.points.length) % this.points.length, move[1] > 0 ? 0 : Infinity] : [line, i];
    const next = this.points[this.at[0]];
    this.at[1] = Math.min(this.at[1], next.at.length - 1);
    this.tell(next, this.at[1]);
  }

  tell({ at, series, look }, i) {
    const [x, y] = at[i];
    const head = element("strong", "", look.label);
    head.prepend(markSvg(look));
    this.tip.replaceChildren(head, ...(series.notes[i] ?? []).map((line) => element("span", "", line)));
    this.tip.classList.add("shown");
    const { offsetWidth: w, offsetHeight: h } = this.tip;
    this.tip.style.left = `${Math.max(4, Math.min(this.width - w - 4, x + 14))}px`;
    this.tip.style.top = `${y - h - 12 < 0 ? y + 14 : y - h - 12}px`;
  }

  quiet() {
    this.tip.classList.remove("shown");
  }

  tabulate() {
    const table = element("table");
    const head = table.createTHead().insertRow();
    for (const text of ["mechanism", this.view.horizontal_axis.title, this.view.label || this.view.vertical, "in words"]) {
      const cell = element("th", "", text);
      cell.scope = "col";
      head.append(cell);
    }
    const body = table.createTBody();
    for (const series of this.view.data.filter((one) => one.group)) series.x.forEach((x, i) => {
      const row = body.insertRow();
      row.dataset.group = series.group;
      const name = element("th", "", this.looks[series.group].label);
      name.scope = "row";
      const cell = (value) => element("td", "number", String(value));
      row.append(name, cell(x), cell(series.y[i]), element("td", "wraps", (series.notes[i] ?? []).join("; ")));
    });
    for (const [score, name] of this.view.levels) {
      const row = body.insertRow();
      row.append(element("th", "", name), element("td", "number", ""), element("td", "number", String(score)), element("td"));
    }
    const caption = table.createCaption();
    caption.textContent = `${this.data.title}${this.view.label ? `, ${this.view.label}` : ""}. ${this.view.summary}`;
    this.details.querySelector(".scroll").replaceChildren(table);
  }
}
