"use strict";
// All text from runs goes in through textContent: nothing that a run writes becomes markup.
const data = JSON.parse(document.getElementById("data").textContent);
const MOST_CURVES = 8;
const byId = (id) => document.getElementById(id);

function make(tag, options = {}, ...children) {
  const { text, ...attributes } = options;
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const COLUMNS = [
  { name: "Network", key: (row) => row.model.toLowerCase(), cell: modelCell },
  { name: "Data, protocol", key: (row) => `${row.data} ${row.protocol}`, cell: dataCell },
  { name: "Val", key: (row) => row.best, cell: valCell, high: true },
  { name: "Test", key: (row) => row.test, cell: testCell, high: true },
  { name: "Published, difference", key: (row) => row.references.map((r) => r.delta).find((d) => d !== null) ?? null, cell: publishedCell, high: true },
  { name: "Steps", key: (row) => row.iters, cell: (row) => [make("div", { text: row.iters === null ? "" : row.iters.toLocaleString("en"), class: "number" })] },
  { name: "Scope", key: (row) => row.scope, cell: (row) => [make("span", { text: row.scope, class: `badge ${row.runs.length ? row.scope : ""}` })] },
];
// What a reader came for first; the rest is folded until it is asked for.
const GROUPS = [
  { kind: "photographs", title: "Measured on real photographs", open: true },
  { kind: "missing", title: "Not run yet" },
  { kind: "toy", title: "Toy data: it shows that a network learns, and has no published number" },
  { kind: "superseded", title: "Superseded: code or recipe has changed since" },
];

function modelCell(row) {
  return [
    make("button", { text: row.model, class: "opener", type: "button", "aria-expanded": "false" }),
    make("span", { text: `${row.project} / `, class: "config" }, make("code", { text: row.config })),
  ];
}

function dataCell(row) {
  return [make("div", {}, make("div", { text: row.data }), make("div", { text: row.protocol, class: "kind" }))];
}

function valCell(row) {
  if (!row.runs.length) return [make("span", { text: "not run", class: "missing" })];
  const spread = row.std === null ? "" : ` ± ${row.std.toFixed(2)}`;
  const score = make("span", { text: row.best.toFixed(2) + spread, class: "score" }, make("small", { text: ` (${row.last.toFixed(2)})` }));
  return [make("div", {}, score, make("div", { text: row.seeds, class: "kind" }))];
}

function testCell(row) {
  if (row.test === null) return [make("span", { text: row.runs.length ? "not measured" : "", class: "missing" })];
  return [make("span", { text: row.test.toFixed(2) + (row.test_std === null ? "" : ` ± ${row.test_std.toFixed(2)}`), class: "score" })];
}

function publishedCell(row) {
  const lines = row.references.flatMap((reference) => {
    const kind = reference.kind + (reference.from_memory ? ", from memory" : "");
    const line = make("div", { text: `${reference.split} ${reference.value.toFixed(2)} ` }, make("span", { text: kind, class: "kind" }));
    if (reference.delta !== null) line.append(make("span", { text: ` ${reference.delta < 0 ? "" : "+"}${reference.delta.toFixed(2)}`, class: "delta" }));
    const why = reference.delta === null && reference.why ? `not comparable: ${reference.why}` : reference.why;
    return why ? [line, make("div", { text: why, class: "why" })] : [line];
  });
  return [make("div", { class: "published" }, ...(lines.length ? lines : [make("span", { text: "none", class: "missing" })]))];
}

// ---- the table ----
const body = document.querySelector("#rows tbody");
const order = { column: -1, descending: false };
let shown = [];

function makeRow(row) {
  const line = make("tr", { class: "row" });
  for (const column of COLUMNS) line.append(make("td", { "data-label": column.name }, ...column.cell(row)));
  row.line = line;
  row.text = [row.id, row.model, row.config, row.project, row.data, row.split, row.protocol, row.scope, ...row.runs.map((run) => run.name),
    row.runs.length ? "measured" : "not run"].join(" ").toLowerCase();
  line.querySelector(".opener").addEventListener("click", () => toggle(row));
}

function makeHead() {
  const head = document.querySelector("#rows thead tr");
  COLUMNS.forEach((column, index) => {
    const button = make("button", { text: column.name, type: "button" });
    button.addEventListener("click", () => {
      const again = order.column === index;
      order.descending = again ? !order.descending : Boolean(column.high);
      order.column = index;
      update();
    });
    head.append(make("th", { scope: "col" }, button));
  });
}

function compare(a, b) {
  const key = COLUMNS[order.column].key;
  const [x, y] = [key(a), key(b)];
  if (x === null || y === null) return (x === null) - (y === null);
  const sign = typeof x === "number" ? x - y : x.localeCompare(y);
  return order.descending ? -sign : sign;
}

function makeGroups() {
  for (const group of GROUPS) {
    const button = make("button", { type: "button", class: "folder" });
    button.addEventListener("click", () => { group.open = button.getAttribute("aria-expanded") !== "true"; group.chosen = true; update(); });
    group.line = make("tr", { class: "group" }, make("td", { colspan: COLUMNS.length }, button));
    group.button = button;
  }
}

function update() {
  const words = byId("filter-text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const project = byId("filter-project").value, dataset = byId("filter-data").value, state = byId("filter-state").value;
  const fits = data.rows.filter((row) => words.every((word) => row.text.includes(word)) && (!project || row.project === project)
    && (!dataset || row.data === dataset) && (!state || state === row.kind));
  if (order.column >= 0) fits.sort(compare);
  document.querySelectorAll("#rows thead th").forEach((head, index) => {
    if (index === order.column) head.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  const asked = words.length > 0 || project || dataset || state;
  if (!asked && update.asked) for (const group of GROUPS) group.chosen = false;
  update.asked = Boolean(asked);
  const lines = [];
  shown = [];
  for (const group of GROUPS) {
    const own = fits.filter((row) => row.kind === group.kind);
    if (!own.length) continue;
    const open = asked && !group.chosen ? true : Boolean(group.open);
    group.button.textContent = `${group.title} (${own.length})`;
    group.button.setAttribute("aria-expanded", String(open));
    lines.push(group.line);
    if (!open) continue;
    shown.push(...own);
    lines.push(...own.flatMap((row) => (row.detail ? [row.line, row.detail] : [row.line])));
  }
  body.replaceChildren(...lines);
  byId("count").textContent = `${fits.length} of ${data.rows.length} rows`;
  byId("nothing").hidden = fits.length > 0;
  drawOverview();
}

// ---- a row, opened ----
function toggle(row) {
  const opener = row.line.querySelector(".opener");
  if (row.detail) {
    row.detail.remove();
    row.detail = null;
  } else {
    row.detail = make("tr", { class: "detail" }, make("td", { colspan: COLUMNS.length }, detailOf(row)));
    row.line.after(row.detail);
    const chart = row.detail.querySelector(".chart");
    if (chart) drawCurves(chart, [row]);
  }
  row.line.classList.toggle("open", Boolean(row.detail));
  opener.setAttribute("aria-expanded", String(Boolean(row.detail)));
}

function detailOf(row) {
  const parts = [];
  if (row.runs.some((run) => run.steps.length > 1)) {
    parts.push(make("section", {}, make("h3", { text: "Validation mIoU against iterations" }), make("div", { class: "chart" })));
  }
  if (row.ious.length) parts.push(classSection(row));
  if (row.panels.length) parts.push(panelSection(row));
  parts.push(commandSection(row));
  return make("div", { class: "grid" }, ...parts);
}

function classSection(row) {
  const names = data.classes[row.classes];
  const lines = row.ious.map((iou, index) => [names[index], iou]).sort((a, b) => (b[1] ?? -1) - (a[1] ?? -1)).map(([name, iou]) => {
    const bar = make("span", { class: "bar" });
    bar.style.width = `${iou ?? 0}%`;
    return make("tr", {}, make("td", { text: name }), make("td", {}, bar), make("td", { text: iou === null ? "absent" : iou.toFixed(1) }));
  });
  const title = "IoU of each class (%)" + (row.runs.length > 1 ? ", mean over seeds" : "");
  return make("section", {}, make("h3", { text: title }),
    make("div", { class: "classes", tabindex: "0", role: "region", "aria-label": title }, make("table", {}, make("tbody", {}, ...lines))));
}

function panelSection(row) {
  const heads = ["image", "label", "prediction"].map((text) => make("span", { text }));
  const images = row.panels.flatMap((panel) => ["image", "label", "prediction"].map((kind) =>
    make("img", { src: data.images[panel[kind]], alt: `${kind} of ${panel.name}`, loading: "lazy" })));
  return make("section", { class: "wide" }, make("h3", { text: "Validation images of the toy data" }),
    make("div", { class: "panels" }, ...heads, ...images));
}

function commandSection(row) {
  const code = make("code", { text: row.command });
  const button = make("button", { text: "Copy", type: "button" });
  button.addEventListener("click", async () => {
    button.textContent = (await copy(row.command, code)) ? "Copied" : "Selected: Ctrl-C";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  const facts = [];
  if (row.hours) facts.push(["expected", `${row.hours} (${row.hours_source})`]);
  if (row.needs) facts.push(["needs", row.needs]);
  if (row.recipe) facts.push(["recipe", row.recipe]);
  if (row.superseded) facts.push(["superseded", row.superseded]);
  for (const reference of row.references) facts.push([`${reference.value.toFixed(2)} (${reference.kind})`, reference.source]);
  for (const run of row.runs) {
    facts.push(["run", `${run.name}: seed ${run.seed}, best ${run.best.toFixed(4)} at step ${run.best_step}, last ${run.last.toFixed(4)} at ${run.last_step}${run.test === null ? "" : `, test ${run.test.toFixed(4)}`}`]);
    facts.push(["trained with", run.command], ["on", run.machine]);
  }
  const where = row.runs.length ? "Train it again, from the repository's root" : `Command, in projects/${row.project}`;
  return make("section", { class: "wide" }, make("h3", { text: where }), make("div", { class: "command" }, code, button),
    make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })])));
}

async function copy(text, element) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const range = document.createRange();
    range.selectNodeContents(element);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return false;
  }
}

// ---- curves ----
let library = null;
function plotly() {
  library ??= (async () => {
    const bytes = Uint8Array.from(atob(byId("plotly").textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    document.head.append(make("script", { text: await new Response(stream).text() }));
    return window.Plotly;
  })();
  return library;
}

const PALETTE = ["#2f7ed8", "#d9822b", "#2aa876", "#c94f7c", "#7d5fd3", "#8a7f2c", "#1fa3b8", "#b0523a"];
const charts = new Map();

async function drawCurves(element, rows) {
  charts.set(element, rows);
  let Plotly;
  try {
    Plotly = await plotly();
  } catch {
    element.textContent = "This browser cannot unpack the charts. The same curves are images in results/curves.";
    return;
  }
  if (charts.get(element) !== rows) return;
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const traces = rows.flatMap((row, index) => row.runs.map((run, number) => ({
    x: run.steps, y: run.miou, name: rows.length > 1 ? `${row.config} · ${row.project}` : `seed ${run.seed}`, mode: "lines+markers",
    line: { color: PALETTE[(rows.length > 1 ? index : number) % PALETTE.length], width: row.runs.length > 1 ? 1 : 2 }, marker: { size: row.runs.length > 1 ? 3 : 5 },
    hovertemplate: "step %{x}: <b>%{y:.2f} %</b><extra></extra>",
  })));
  if (rows.length === 1) {
    rows[0].runs.forEach((run, number) => run.test !== null && traces.push({ x: [run.best_step], y: [run.test], name: `test, seed ${run.seed}`, mode: "markers",
      marker: { size: 10, symbol: "diamond", color: PALETTE[number % PALETTE.length] }, hovertemplate: "test: <b>%{y:.2f} %</b><extra></extra>" }));
  }
  const longest = Math.max(...rows.flatMap((row) => row.runs.map((run) => run.steps[run.steps.length - 1])));
  if (rows.length === 1) {
    for (const reference of rows[0].references) {
      const name = `${reference.kind}, ${reference.split} ${reference.value.toFixed(2)}${reference.delta === null ? " (not comparable)" : ""}`;
      traces.push({ x: [0, longest], y: [reference.value, reference.value], name, mode: "lines",
        line: { color: colour("--quiet"), dash: reference.delta === null ? "dot" : "dash", width: 1.5 },
        hovertemplate: `${escaped(name)}<extra></extra>` });
    }
  }
  const axis = { gridcolor: colour("--grid"), zerolinecolor: colour("--grid"), fixedrange: true };
  for (const trace of traces) trace.showlegend = false;
  // The element is as tall as the plot, whatever Plotly makes of a change of width, so what follows it stays below.
  const height = element.clientWidth < 520 ? 300 : rows.length > 1 ? 250 : 330;
  element.style.height = `${height}px`;
  await Plotly.react(element, traces, {
    height, margin: { l: 48, r: 12, t: 8, b: 44 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: 12 }, hovermode: "closest",
    xaxis: { ...axis, title: { text: "iterations" }, rangemode: "tozero" }, yaxis: { ...axis, title: { text: "mean IoU (%)" }, rangemode: "tozero" },
    showlegend: false,
  }, { displayModeBar: false, responsive: true });
  drawLegend(element, traces, Plotly);
  element.dataset.drawn = "yes";
}

// A legend of the page's own, below the plot: it wraps with the width and never lies over the curves.
function drawLegend(element, traces, Plotly) {
  const names = [...new Set(traces.map((trace) => trace.name))];
  const list = make("ul", { class: "legend" }, ...names.map((name) => {
    const indices = traces.flatMap((trace, index) => (trace.name === name ? [index] : []));
    const first = traces[indices[0]];
    const swatch = make("span", { class: `swatch ${first.line?.dash ?? (first.mode === "markers" ? "point" : "")}` });
    swatch.style.color = first.line?.color ?? first.marker.color;
    const button = make("button", { type: "button", "aria-pressed": "true", title: "show or hide" }, swatch, name);
    button.addEventListener("click", () => {
      const visible = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(visible));
      Plotly.restyle(element, { visible }, indices);
    });
    return make("li", {}, button);
  }));
  if (element.nextElementSibling?.classList.contains("legend")) element.nextElementSibling.replaceWith(list);
  else element.after(list);
}

// Plotly reads a few tags in hover texts.
function escaped(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

let overviewRows = null;
function drawOverview() {
  const curves = shown.filter((row) => row.runs.some((run) => run.steps.length > 1));
  const rows = curves.slice(0, MOST_CURVES);
  byId("overview").hidden = rows.length === 0;
  if (!byId("overview").open || !rows.length) return;
  if (overviewRows && rows.length === overviewRows.length && rows.every((row, index) => row === overviewRows[index])) return;
  overviewRows = rows;
  const which = curves.length > rows.length ? `The first ${rows.length} of ${curves.length} open rows with a curve` : "The open rows with a curve";
  byId("overview-note").textContent = `${which}; the filter chooses. Curves of different data or protocols say nothing about each other.`;
  drawCurves(byId("overview-chart"), rows);
}

// ---- keyboard and start ----
function listen() {
  for (const id of ["filter-text", "filter-project", "filter-data", "filter-state"]) byId(id).addEventListener("input", update);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("overview").addEventListener("toggle", drawOverview);
  byId("clear").addEventListener("click", () => { byId("filters").reset(); update(); byId("filter-text").focus(); });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT)$/.test(document.activeElement.tagName);
    if (event.key === "/" && !typing) { event.preventDefault(); byId("filter-text").focus(); }
    if (event.key === "Escape") closeOrClear();
    if ((event.key === "ArrowDown" || event.key === "ArrowUp") && !/^SELECT$/.test(document.activeElement.tagName)) moveRow(event);
  });
  const redraw = () => {
    for (const [element, rows] of charts) if (element.isConnected && element.clientWidth) drawCurves(element, [...rows]);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  let width = innerWidth, timer = 0;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar comes and goes
    width = innerWidth;
    clearTimeout(timer);
    timer = setTimeout(redraw, 150);
  });
}

function closeOrClear() {
  if (document.activeElement === byId("filter-text")) { byId("filter-text").value = ""; update(); return; }
  const row = shown.find((candidate) => candidate.detail && (candidate.line.contains(document.activeElement) || candidate.detail.contains(document.activeElement)));
  if (row) { toggle(row); row.line.querySelector(".opener").focus(); }
}

function moveRow(event) {
  const openers = shown.map((row) => row.line.querySelector(".opener"));
  const at = openers.indexOf(document.activeElement);
  const inFilter = document.activeElement === byId("filter-text");
  if ((at < 0 && !inFilter) || !openers.length) return;
  event.preventDefault();
  const next = at < 0 ? 0 : at + (event.key === "ArrowDown" ? 1 : -1);
  if (next < 0) byId("filter-text").focus();
  else openers[Math.min(next, openers.length - 1)].focus();
}

function start() {
  makeHead();
  makeGroups();
  data.rows.forEach(makeRow);
  for (const [id, key] of [["filter-project", "project"], ["filter-data", "data"]]) {
    const values = [...new Set(data.rows.map((row) => row[key]))].sort();
    byId(id).append(...values.map((value) => make("option", { text: value, value })));
  }
  listen();
  byId("overview").open = innerWidth > 760;
  // The first screen of rows, then the rest and the chart library, so that a large table is there at once.
  shown = data.rows.filter((row) => row.kind === "photographs").slice(0, 30);
  body.replaceChildren(...shown.map((row) => row.line));
  requestAnimationFrame(() => setTimeout(() => {
    performance.mark("first-row");
    update();
  }));
}
document.addEventListener("DOMContentLoaded", start);
