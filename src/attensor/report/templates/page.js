// The page: one choice of length and rule for table, plots and verdict; copying code; printing.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  charts.push(...(data.charts ?? []).map((chart) => new Chart(chart)));
  const results = data.table && document.getElementById("table") ? new Results(data.table) : null;
  if (data.sized && document.getElementById("size")) new Size(data.sized);

  const length = document.getElementById("at-length");
  const rules = [...document.querySelectorAll("[data-rule]")];
  let rule = rules.find((one) => one.getAttribute("aria-pressed") === "true")?.dataset.rule ?? "tokens";

  function choose() {
    const choice = `${length ? length.value : ""} ${rule}`;
    for (const one of rules) one.setAttribute("aria-pressed", String(one.dataset.rule === rule));
    for (const chart of charts) chart.choose(length ? Number(length.value) : null, rule);
    results?.choose(choice);
    (data.verdicts ?? []).forEach((verdict, i) => {
      document.querySelectorAll(".verdict .line")[i].textContent = verdict.lines[choice] ?? "";
    });
  }

  length?.addEventListener("change", choose);
  for (const one of rules) one.addEventListener("click", () => { rule = one.dataset.rule; choose(); });
  if (results) choose();

  for (const one of document.querySelectorAll("button.copy")) one.addEventListener("click", async () => {
    const code = one.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      // a page from the disk may not write to the clipboard: the code is marked for the reader's own copy
      getSelection().selectAllChildren(code);
      one.textContent = document.execCommand("copy") ? "Copied" : "Marked: press Ctrl+C";
      return;
    }
    one.textContent = "Copied";
    setTimeout(() => { one.textContent = "Copy"; }, 2000);
  });

  // a link to a card opens it
  for (const link of document.querySelectorAll('a[href^="#card-"]')) link.addEventListener("click", () => {
    document.getElementById(link.hash.slice(1)).open = true;
  });

  // paper has a width of its own, two plots go on a page, and nobody opens there what is folded
  const redraw = (...size) => { for (const chart of charts) chart.draw(...size); };
  const unfolded = new Set();
  const print = (isPaper) => {
    if (isPaper) for (const one of document.querySelectorAll("details.reasons:not([open])")) unfolded.add(one);
    for (const one of unfolded) one.open = isPaper;
    if (isPaper) redraw(690, 270);
    else { unfolded.clear(); redraw(); }
  };
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  matchMedia("print").addEventListener("change", ({ matches }) => print(matches));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
})();
