"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const touch = matchMedia("(pointer: coarse)").matches;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

  // colours come from the style sheet, so that the plots follow the theme
  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = (own) => ({ gridcolor: colour("--grid"), linecolor: colour("--line"), tickcolor: colour("--line"),
      ticks: "outside", ticklen: 4, showline: true, ...own,
      // a finger on the plot scrolls the page instead of zooming
      fixedrange: touch, title: { ...own.title, font: { size: 13, color: colour("--quiet") }, standoff: 10 } });
    return {
      showlegend: false, hovermode: "closest", dragmode: touch ? false : "zoom",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 8, r: 12, t: 12, b: 8 },
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("--quiet") },
      hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), align: "left",
        font: { size: 13, color: colour("--text") } },
      ...layout, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
    };
  }

  function element(tag, className, text) {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    return made;
  }

  function build(chart) {
    const section = document.getElementById(chart.name);
    const find = (name) => section.querySelector("." + name);
    let view = chart.views[0];
    let alone = null;

    function draw() {
      const data = view.data.map((trace) => ({ ...trace, visible: alone === null || trace.legendgroup === alone }));
      find("vertical").textContent = view.vertical;
      Plotly.react(find("plot"), data, themed(view.layout), config);
      for (const button of find("keys").children)
        button.setAttribute("aria-pressed", String(button.dataset.group === alone));
      for (const button of find("switch").children)
        button.setAttribute("aria-pressed", String(button.textContent === view.label));
      find("keys").classList.toggle("isolated", alone !== null);
    }

    function show(chosen) {
      view = chosen;
      if (!view.keys.some((key) => key.group === alone)) alone = null;
      find("keys").replaceChildren(...view.keys.map((key) => {
        const button = element("button", "", "");
        const glyph = element("span", "glyph", key.glyph);
        glyph.style.color = key.colour;
        glyph.ariaHidden = "true";
        button.type = "button";
        button.dataset.group = key.group;
        button.append(glyph, element("span", "name", key.label), element("span", "detail", key.detail));
        button.addEventListener("click", () => { alone = alone === key.group ? null : key.group; draw(); });
        return button;
      }));
      draw();
    }

    if (chart.views.length > 1)
      find("switch").replaceChildren(...chart.views.map((each) => {
        const button = element("button", "", each.label);
        button.type = "button";
        button.addEventListener("click", () => show(each));
        return button;
      }));
    show(view);
    dark.addEventListener("change", draw);
  }

  charts.forEach(build);
})();
