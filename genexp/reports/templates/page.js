"use strict";
// Charts are drawn when they scroll into view, so that a page with many charts opens quickly.
const charts = JSON.parse(document.getElementById("charts").textContent);
const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
const hiddenCurves = new Set(); // labels of the hidden curves on a page of many runs
const isTouchDevice = window.matchMedia("(pointer: coarse)").matches;

function getCssVariable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function buildLayout(chart) {
  const chartLayout = chart.layout;
  const axis = { gridcolor: getCssVariable("--grid"), linecolor: getCssVariable("--line"), zeroline: false, automargin: true, exponentformat: "e" };
  const mutedFont = { color: getCssVariable("--muted"), size: 11 };
  const legendEntryCount = chart.traces.filter((trace) => trace.showlegend !== false).length;
  const annotations = (chartLayout.annotations || []).map((annotation) => ({
    ...annotation, font: mutedFont, bgcolor: getCssVariable("--surface"), opacity: 0.85, borderpad: 0,
  }));
  return {
    ...chartLayout,
    title: { text: chart.title, font: { size: 14, color: getCssVariable("--text") }, x: 0.02, xanchor: "left", y: 0.97 },
    xaxis: { ...axis, ...chartLayout.xaxis },
    yaxis: { ...axis, ...chartLayout.yaxis },
    annotations,
    font: { family: getComputedStyle(document.body).fontFamily, ...mutedFont },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 48, r: 16, t: 40, b: 32 },
    showlegend: legendEntryCount > 1,
    legend: { orientation: "h", x: 0, y: -0.12, yanchor: "top", font: mutedFont },
    hoverlabel: { namelength: -1 },
    hovermode: chartLayout.hovermode || "x",
    dragmode: isTouchDevice ? false : "zoom",
  };
}

function draw(box) {
  const chart = charts[Number(box.dataset.chart)];
  box.setAttribute("aria-label", chart.title || "parallel coordinates");
  const traces = chart.traces.map((trace) => ({ ...trace, visible: !hiddenCurves.has(trace.meta) }));
  Plotly.react(box, traces, buildLayout(chart), { responsive: true, displayModeBar: false });
  box.dataset.drawn = "yes";
}

function redraw() {
  document.querySelectorAll(".chart[data-drawn]").forEach(draw);
}

function toggleCurve(button) {
  const label = button.dataset.curve;
  const isVisible = hiddenCurves.delete(label) || !hiddenCurves.add(label);
  button.setAttribute("aria-pressed", String(isVisible));
  redraw();
}

async function loadPlotly() {
  const encoded = document.getElementById("plotly").textContent;
  const bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

async function drawCharts() {
  const boxes = [...document.querySelectorAll(".chart")];
  if (!boxes.length) return;
  await loadPlotly();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "300px" });
  boxes.forEach((box) => observer.observe(box));
  prefersDark.addEventListener("change", redraw);
  document.body.dataset.ready = "yes";
}

// Compare numbers numerically and text alphabetically. Empty cells come last.
function compareCells(left, right) {
  if (left.text === "" || right.text === "") return (left.text === "") - (right.text === "");
  if (left.value !== null && right.value !== null) return left.value - right.value;
  return left.text.localeCompare(right.text, undefined, { numeric: true });
}

function readCell(row, column) {
  const cell = row.cells[column];
  const value = cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  return { text: cell.textContent.trim(), value, row };
}

function sortBy(table, header) {
  const isDescending = header.getAttribute("aria-sort") === "ascending";
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
  const cells = [...table.tBodies[0].rows].map((row) => readCell(row, header.cellIndex));
  const sign = isDescending ? -1 : 1;
  cells.sort((left, right) => {
    const order = compareCells(left, right);
    return left.text === "" || right.text === "" ? order : sign * order;
  });
  table.tBodies[0].append(...cells.map((cell) => cell.row));
}

for (const table of document.querySelectorAll(".sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    header.querySelector("button").addEventListener("click", () => sortBy(table, header));
    const first = table.tBodies[0].rows[0];
    if (first && first.cells[header.cellIndex].classList.contains("number")) header.classList.add("number");
  }
}
for (const button of document.querySelectorAll("[data-curve]")) {
  button.addEventListener("click", () => toggleCurve(button));
}
drawCharts();
