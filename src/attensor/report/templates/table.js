// The table of results: cells of the chosen length and rule, sorting, the meaning of headings, and the CSV.

class Results {
  constructor(data) {
    this.data = data;
    this.table = document.getElementById("table");
    this.body = this.table.tBodies[0];
    this.choice = data.first;
    this.sorted = null;
    this.heads = [...this.table.tHead.rows[0].cells].slice(1);
    this.heads.forEach((head, i) => {
      head.querySelector(".sort").addEventListener("click", () => this.press(i));
      this.note(i).addEventListener("beforetoggle", () => this.place(i));
    });
    const again = () => this.heads.forEach((head, i) => this.place(i));
    this.table.parentElement.addEventListener("scroll", again);
    addEventListener("resize", again);
    document.getElementById("csv").addEventListener("click", () => this.download());
    const score = data.columns.findIndex((column) => column.key === "score");
    this.sort(score, this.better(score));
  }

  key(column) {
    return column.turns ? this.choice : "";
  }

  cells(column) {
    return this.data.columns[column].cells[this.key(this.data.columns[column])];
  }

  choose(choice) {
    this.choice = choice;
    this.data.columns.forEach((column, i) => {
      const title = column.titles[this.key(column)], cells = this.cells(i);
      this.heads[i].querySelector(".sort").textContent = title;
      this.heads[i].dataset.title = title;
      this.heads[i].querySelector(".help").setAttribute("aria-label", `What ${title} means`);
      this.note(i).querySelector("strong").textContent = title;
      for (const row of this.body.querySelectorAll("tr[data-row]:not(.failed)")) {
        const [text, , isBest] = cells[row.dataset.row], cell = row.cells[i + 1];
        cell.textContent = text;
        cell.classList.toggle("best", isBest);
      }
    });
    this.sort(...this.sorted);
  }

  // 1: the least first; a column in which more is better begins with the greatest
  better(i) {
    const cells = this.cells(i);
    const best = cells.find((cell) => cell[2]), numbers = cells.map((cell) => cell[1]).filter((number) => number !== null);
    if (this.data.columns[i].key === "score") return this.data.lower ? 1 : -1;
    return best && best[1] === Math.max(...numbers) ? -1 : 1;
  }

  press(i) {
    const [column, way] = this.sorted;
    this.sort(i, column === i ? -way : this.better(i));
  }

  sort(i, way) {
    this.sorted = [i, way];
    const number = (row) => {
      if (row.dataset.row !== undefined) return this.cells(i)[row.dataset.row][1];
      return this.data.columns[i].key === "score" ? this.data.references[row.dataset.reference].score : null;
    };
    const rank = (row) => (row.classList.contains("failed") ? 2 : number(row) === null ? 1 : 0);
    const rows = [...this.body.rows].sort((a, b) => rank(a) - rank(b) || (rank(a) === 0 ? way * (number(a) - number(b)) : 0));
    this.body.append(...rows);
    this.heads.forEach((head, at) => head.setAttribute("aria-sort", at !== i ? "none" : way > 0 ? "ascending" : "descending"));
  }

  // what its heading means; the browser opens and closes it: a press on ?, there again or elsewhere, Escape
  note(i) {
    return document.getElementById("help-" + this.data.columns[i].key);
  }

  // below its ?, and inside of the window
  place(i) {
    const { left, bottom } = this.heads[i].querySelector(".help").getBoundingClientRect();
    const edge = document.documentElement.clientWidth, width = Math.min(340, edge - 24);
    this.note(i).style.left = `${scrollX + Math.max(12, Math.min(left, edge - width - 12))}px`;
    this.note(i).style.top = `${scrollY + bottom + 4}px`;
  }

  csv() {
    // a cell that a spreadsheet would take for a formula becomes text
    const quoted = (value) => {
      const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? "'" + value : String(value ?? "");
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const [length, rule] = this.choice.split(" ");
    const lines = [["name", "kind", "status", "length", "rule", ...this.data.columns.map((column) => column.key)]];
    this.data.rows.forEach((row, at) => lines.push([row.name, "mechanism", row.status || "ok", length, rule,
      ...this.data.columns.map((column, i) => this.cells(i)[at][1])]));
    for (const row of this.data.references) lines.push([row.name, "reference", row.reason ?? "ok", length, rule,
      ...this.data.columns.map((column) => (column.key === "score" ? row.score : null))]);
    return lines.map((line) => line.map(quoted).join(",") + "\r\n").join("");
  }

  download() {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([this.csv()], { type: "text/csv" }));
    link.download = "attensor-compare.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}
