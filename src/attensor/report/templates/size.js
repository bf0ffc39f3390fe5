// Cost at the reader's size: formulas as trees of operations, computed here; no text is ever run as code.

const OPERATIONS = {
  "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b, "/": (a, b) => a / b, "**": (a, b) => a ** b,
  Min: Math.min, Max: Math.max,
};

// NaN where a symbol has no size
function evaluate(tree, sizes) {
  if (Array.isArray(tree)) return OPERATIONS[tree[0]](...tree.slice(1).map((part) => evaluate(part, sizes)));
  return typeof tree === "string" ? sizes[tree] ?? NaN : tree;
}

function digits(value) {
  return Number(value.toPrecision(3)).toLocaleString("en");
}

function inUnits(value, base, units) {
  if (!Number.isFinite(value)) return "–";
  let power = 0;
  while (value >= base && power < units.length - 1) { value /= base; power += 1; }
  return `${digits(value)} ${units[power]}`;
}

const bytes = (value) => inUnits(value, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]);
const operations = (value) => inUnits(value, 1000, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"]);

class Size {
  constructor(data) {
    this.data = data;
    this.section = document.getElementById("size");
    this.section.addEventListener("input", () => this.compute());
    this.compute();
  }

  // the inputs, or why they make no model
  read() {
    const size = {};
    for (const key of Object.keys(this.data.start)) {
      const input = document.getElementById(`size-${key}`), value = Number(input.value);
      const isRight = Number.isInteger(value) && value >= 1;
      input.setAttribute("aria-invalid", String(!isRight));
      if (!isRight) return `${key}: must be a whole number from 1, got “${input.value}”.`;
      size[key] = value;
    }
    return size.width % size.heads ? `heads: must divide the width ${size.width}, ${size.heads} does not.` : size;
  }

  compute() {
    const size = this.read(), isWrong = typeof size === "string";
    document.getElementById("size-error").textContent = isWrong ? size : "";
    for (const row of this.section.querySelectorAll("tr[data-size]")) {
      const { trees, peak } = this.data.rows[row.dataset.size];
      const own = [...row.querySelectorAll("[data-symbol]")].map((input) => [input.dataset.symbol, input.value === "" ? NaN : Number(input.value)]);
      const sizes = isWrong ? {} : { B: size.batch, T: size.length, H: size.heads, K: size.width / size.heads,
        V: size.width / size.heads, ...Object.fromEntries(own) };
      const show = (key, text) => { const cell = row.querySelector(`[data-key="${key}"]`); if (cell) cell.textContent = text; };
      const all = (key) => (trees[key] === undefined || trees[key] === null || isWrong ? NaN : size.layers * evaluate(trees[key], sizes));
      show("flops", operations(all("flops")));
      show("state_bytes", bytes(all("state_bytes")));
      const [length, measured, power] = peak ?? [1, NaN, 1];
      show("peak", isWrong || !peak ? "–" : "≈ " + bytes(measured * (size.length / length) ** power
        * (size.width / this.data.measured_width) * size.batch * size.layers));
    }
  }
}
