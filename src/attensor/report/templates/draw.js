"use strict";
// Pictures of views: `draw` makes an SVG from data and says where its points are; nothing here listens to anything.

function shape(tag, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text) made.textContent = text;
  return made;
}

const measured = document.createElement("canvas").getContext("2d");
function textWidth(text) {
  measured.font = `12.5px ${getComputedStyle(document.body).fontFamily}`;
  return measured.measureText(text).width;
}

function shortened(text, room) {
  if (textWidth(text) <= room) return text;
  let end = text.length;
  while (end > 1 && textWidth(text.slice(0, end) + "…") > room) end -= 1;
  return text.slice(0, end) + "…";
}

// at most two lines
function wrapped(text, room) {
  if (textWidth(text) <= room) return [text];
  const words = text.split(" ");
  let end = words.length - 1;
  while (end > 1 && textWidth(words.slice(0, end).join(" ")) > room) end -= 1;
  return [words.slice(0, end).join(" "), shortened(words.slice(end).join(" "), room)];
}

// from the units of an axis to pixels
function scaleOf(axis, from, to) {
  const of = axis.is_log ? Math.log : (value) => value;
  const low = of(axis.low), span = of(axis.high) - low || 1;
  return (value) => from + ((of(value) - low) / span) * (to - from);
}

// places nearest to the wanted ones, in their order, at least `gap` apart: isotonic regression by pooling
function spread(wanted, gap, low, high) {
  const pools = [];
  wanted.forEach((place, i) => {
    pools.push({ sum: place - i * gap, size: 1 });
    for (let n = pools.length; n > 1 && pools[n - 2].sum / pools[n - 2].size > pools[n - 1].sum / pools[n - 1].size; n -= 1) {
      const last = pools.pop();
      pools[n - 2].sum += last.sum;
      pools[n - 2].size += last.size;
    }
  });
  const top = Math.max(low, high - (wanted.length - 1) * gap);
  const settled = pools.flatMap((pool) => Array(pool.size).fill(Math.min(top, Math.max(low, pool.sum / pool.size))));
  return settled.map((place, i) => place + i * gap);
}

function markOf(look, x, y, size) {
  return shape("path", { class: "point", d: look.mark, transform: `translate(${x},${y}) scale(${size})`,
    fill: look.hollow ? "var(--card)" : look.colour, stroke: look.colour, "stroke-width": look.hollow ? 2.4 : 0.8 });
}

function pathOf(points, steps = false) {
  return points.map(([x, y], i) => (i === 0 ? `M${x},${y}` : steps ? `H${x}V${y}` : `L${x},${y}`)).join("");
}

function grid(svg, view, box, across, up) {
  let end = -Infinity;
  view.horizontal_axis.ticks.forEach((tick, i) => {
    const x = across(tick), text = view.horizontal_axis.texts[i], half = textWidth(text) / 2;
    svg.append(shape("line", { class: "grid", x1: x, x2: x, y1: box.top, y2: box.bottom }));
    if (x - half < end + 8) return;
    end = x + half;
    svg.append(shape("text", { class: "tick", x, y: box.bottom + 18, "text-anchor": "middle" }, text));
  });
  let last = Infinity;
  view.vertical_axis.ticks.forEach((tick, i) => {
    const y = up(tick);
    svg.append(shape("line", { class: "grid", x1: box.left, x2: box.right, y1: y, y2: y }));
    if (last - y < 15) return;
    last = y;
    svg.append(shape("text", { class: "tick", x: box.left - 7, y: y + 4, "text-anchor": "end" }, view.vertical_axis.texts[i]));
  });
  svg.append(shape("rect", { class: "frame", x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }));
  const middle = box.isWide ? (box.left + box.right) / 2 : box.full / 2;
  wrapped(view.horizontal_axis.title, box.isWide ? box.width : box.full - 8).forEach((line, i) => svg.append(
    shape("text", { class: "title", x: middle, y: box.bottom + 38 + 15 * i, "text-anchor": "middle" }, line)));
}

// lines across, for chance and references; one that is out of sight stands at the edge if it is chance
function levels(svg, view, box, up, taken) {
  const { low, high } = view.vertical_axis;
  const inside = view.levels.filter(([score]) => score >= low && score <= high);
  const wanted = inside.map(([score, name]) => ({ name, y: up(score) })).sort((a, b) => a.y - b.y);
  const chance = view.levels.find(([, name]) => name.startsWith("chance"));
  if (chance && !inside.includes(chance)) {
    const above = chance[0] > high;
    wanted[above ? "unshift" : "push"]({ name: `${above ? "↑" : "↓"} ${chance[1]}`, y: above ? box.top : box.bottom });
  }
  for (const { y } of wanted) svg.append(shape("line", { class: "level", x1: box.left, x2: box.right, y1: y, y2: y }));
  for (const { name, y } of wanted) {
    const place = { x: box.left + 6, y: (y < box.top + 14 ? y + 2 : y - 14), w: textWidth(name), h: 13 };
    // names of lines close together stand side by side
    while (taken.some((other) => overlap(place, other))) place.x += 8;
    taken.push({ ...place, w: place.w + 10 });
    if (place.x + place.w < box.right) svg.append(shape("text", { class: "level-name halo", x: place.x, y: place.y + 10 }, name));
  }
}

function seriesOf(layer, series, look, across, up, box, bars) {
  const at = series.x.map((x, i) => [across(x), up(series.y[i])]);
  if (series.kind === "steps") layer.append(shape("path", { class: "front", d: pathOf(at, true) }));
  if (!look) return [];
  if (series.kind === "bars") {
    const width = bars.width / bars.count, left = (bars.place - bars.count / 2) * width;
    const zero = Math.min(box.bottom, Math.max(box.top, up(0)));
    at.forEach(([x, y]) => layer.append(shape("rect", { class: "column", x: x + left, width: Math.max(1, width - 2),
      y: Math.min(y, zero), height: Math.max(1, Math.abs(zero - y)), fill: look.colour })));
    return at.map(([x, y]) => [x + left + width / 2, y]);
  }
  const ends = series.low.map((low, i) => [up(low), up(series.high[i])]);
  if (series.kind === "line") {
    if (ends.length) {
      const band = [...at.map(([x], i) => [x, ends[i][0]]), ...at.map(([x], i) => [x, ends[i][1]]).reverse()];
      layer.append(shape("path", { class: "band", d: pathOf(band) + "Z", fill: look.colour }));
    }
    layer.append(shape("path", { class: "curve", d: pathOf(at), stroke: look.colour, "stroke-dasharray": look.dash }));
  } else {
    ends.forEach(([low, high], i) => layer.append(shape("path", { class: "error", stroke: look.colour,
      d: `M${at[i][0] - 4},${low}h8M${at[i][0] - 4},${high}h8M${at[i][0]},${low}V${high}` })));
  }
  const size = series.kind === "points" ? 0.95 : 0.55;
  at.forEach(([x, y], i) => layer.append(markOf(look, x, y, series.large.includes(i) ? 1.1 : size)));
  return at;
}

// names at the right ends of lines, apart from each other, with a hair line from the end to the name
function endLabels(svg, drawn, box, room) {
  const ends = drawn.map((one) => ({ ...one, end: one.at.at(-1) })).sort((a, b) => a.end[1] - b.end[1]);
  const limits = (y) => Math.min(box.bottom, Math.max(box.top, y));
  const places = spread(ends.map(({ end }) => limits(end[1])), 14.5, box.top + 2, box.bottom - 2);
  ends.forEach(({ end, look, detail }, i) => {
    const x = box.right + 14, y = places[i], isEarly = end[0] < box.right - 0.12 * box.width;
    svg.append(shape("path", { class: "leader", "stroke-dasharray": isEarly ? "1 4" : "", d: `M${end[0]},${limits(end[1])}L${box.right + 2},${limits(end[1])}L${x - 3},${y}`, stroke: look.colour }));
    // where there is no room for both, the name goes before the detail
    const behind = detail && textWidth(look.label) + textWidth(detail) + 20 <= room ? textWidth(detail) + 6 : 0;
    svg.append(markOf(look, x + 4, y, 0.55));
    const text = shape("text", { class: "label", x: x + 13, y: y + 4 }, shortened(look.label, room - 14 - behind));
    if (behind) text.append(shape("tspan", { class: "detail", dx: 6 }, detail));
    svg.append(text);
  });
}

const overlap = (a, b) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;

// names beside marks, where nothing else stands; one without a place is left to the legend
function pointLabels(svg, drawn, box, taken) {
  for (const { at: [[x, y]], look } of drawn) {
    const text = shortened(look.label, Math.min(170, box.width / 2.5)), w = textWidth(text), h = 14;
    const tries = [12, 20, 32, 46, 62].flatMap((far) => [0, 180, 90, 270, 35, 325, 145, 215].map((turn) => {
      const angle = (turn * Math.PI) / 180, cx = x + far * Math.cos(angle), cy = y + far * Math.sin(angle);
      return { far, x: Math.cos(angle) > 0.1 ? cx : Math.cos(angle) < -0.1 ? cx - w : cx - w / 2, y: cy - h / 2, w, h };
    }));
    const free = tries.find((place) => place.x > box.left + 2 && place.x + w < box.right + box.beside && place.y > box.top
      && place.y + h < box.bottom && !taken.some((other) => overlap(place, other)));
    if (!free) continue;
    taken.push(free);
    if (free.far > 20) {
      const to = [Math.min(free.x + w, Math.max(free.x, x)), y < free.y ? free.y + 2 : y > free.y + h ? free.y + h - 2 : y];
      svg.append(shape("path", { class: "leader", d: `M${x},${y}L${to[0]},${to[1]}`, stroke: look.colour }));
    }
    svg.append(shape("text", { class: "label halo", x: free.x, y: free.y + 11 }, text));
  }
}

// the plot of a view in `width` pixels and at least `least` high; `isShown` says which groups are; returns SVG and points
function draw(view, looks, width, isShown, least) {
  const named = view.data.filter((series) => series.group && looks[series.group]);
  const shown = named.filter((series) => isShown(series.group));
  const lines = shown.filter((series) => series.kind === "line");
  const wide = width > 560;
  const labelOf = (series) => textWidth(looks[series.group].label) + (series.detail ? textWidth(series.detail) + 6 : 0);
  const room = Math.min(wide ? 220 : width * 0.33, Math.max(0, ...named.filter((s) => s.kind === "line").map(labelOf)) + 18);
  const beside = named.some((series) => series.kind === "line") ? room + 18 : 14;
  const height = Math.max(least ?? (wide ? 400 : 340), 14.5 * named.length + 70);
  const left = Math.max(24, ...view.vertical_axis.texts.map(textWidth)) + 12;
  const box = { left, top: 10, right: width - beside, bottom: height - 60, beside: beside - 4, full: width, isWide: wide };
  box.width = box.right - box.left;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", tabindex: 0 });
  const id = `clip-${(draw.count = (draw.count ?? 0) + 1)}`;
  const clip = shape("clipPath", { id });
  clip.append(shape("rect", { x: box.left - 9, y: box.top - 1, width: box.width + 18, height: box.bottom - box.top + 2 }));
  svg.append(clip);
  const across = scaleOf(view.horizontal_axis, box.left, box.right), up = scaleOf(view.vertical_axis, box.bottom, box.top);
  grid(svg, view, box, across, up);
  const inside = shape("g", { "clip-path": `url(#${id})` });
  const bars = barsOf(named, across, box);
  const drawn = view.data.flatMap((series) => {
    const isFaded = series.group && !isShown(series.group);
    const layer = shape("g", { class: isFaded ? "series faded" : "series", "data-group": series.group });
    const place = bars && { ...bars, place: named.indexOf(series) };
    const at = seriesOf(layer, series, looks[series.group], across, up, box, place);
    inside.append(layer);
    return at.length && !isFaded ? [{ at, series, look: looks[series.group], detail: series.detail }] : [];
  });
  svg.append(inside);
  const points = drawn.filter(({ series }) => series.kind === "points");
  const taken = points.map(({ at: [[x, y]] }) => ({ x: x - 8, y: y - 8, w: 16, h: 16 }));
  levels(svg, view, box, up, taken);
  if (lines.length) endLabels(svg, drawn.filter(({ series }) => series.kind === "line"), box, room);
  pointLabels(svg, points, box, taken);
  return { svg, drawn, box };
}

function barsOf(named, across, box) {
  const count = named.filter((series) => series.kind === "bars").length;
  if (!count) return null;
  const places = [...new Set(named.flatMap((series) => series.x.map(across)))].sort((a, b) => a - b);
  const gaps = places.slice(1).map((place, i) => place - places[i]);
  return { count, width: 0.8 * Math.min(box.width / 3, ...gaps) };
}
