"use strict";
// Charts are drawn when they come into view: a page of many opens at once.
const charts = JSON.parse(document.getElementById("charts").textContent);
const wantsDark = window.matchMedia("(prefers-color-scheme: dark)");
const hidden = new Set(); // curves of a sweep, by their label
const isTouched = window.matchMedia("(pointer: coarse)").matches;

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function layoutOf(chart) {
  const given = chart.layout;
  const axis = { gridcolor: color("--grid"), linecolor: color("--line"), zeroline: false, automargin: true, exponentformat: "e" };
  const soft = { color: color("--soft"), size: 11 };
  const listed = chart.traces.filter((trace) => trace.showlegend !== false).length;
  const marks = (given.annotations || []).map((mark) => ({
    ...mark, font: soft, bgcolor: color("--card"), opacity: 0.85, borderpad: 0,
  }));
  return {
    ...given,
    title: { text: chart.title, font: { size: 14, color: color("--ink") }, x: 0.02, xanchor: "left", y: 0.97 },
    xaxis: { ...axis, ...given.xaxis },
    yaxis: { ...axis, ...given.yaxis },
    annotations: marks,
    font: { family: getComputedStyle(document.body).fontFamily, ...soft },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 48, r: 16, t: 40, b: 32 },
    showlegend: listed > 1,
    legend: { orientation: "h", x: 0, y: -0.12, yanchor: "top", font: soft },
    hoverlabel: { namelength: -1 },
    hovermode: given.hovermode || "x",
    dragmode: isTouched ? false : "zoom",
  };
}

function draw(box) {
  const chart = charts[Number(box.dataset.chart)];
  box.setAttribute("aria-label", chart.title || "parallel coordinates");
  const traces = chart.traces.map((trace) => ({ ...trace, visible: !hidden.has(trace.meta) }));
  Plotly.react(box, traces, layoutOf(chart), { responsive: true, displayModeBar: false });
  box.dataset.drawn = "yes";
}

function redraw() {
  document.querySelectorAll(".chart[data-drawn]").forEach(draw);
}

function toggleCurve(button) {
  const label = button.dataset.curve;
  const shows = hidden.delete(label) || !hidden.add(label);
  button.setAttribute("aria-pressed", String(shows));
  redraw();
}

async function loadPlotly() {
  const packed = document.getElementById("plotly").textContent;
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

async function drawCharts() {
  const boxes = [...document.querySelectorAll(".chart")];
  if (!boxes.length) return;
  await loadPlotly();
  const sight = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      sight.unobserve(entry.target);
      draw(entry.target);
    }
  }, { rootMargin: "300px" });
  boxes.forEach((box) => sight.observe(box));
  wantsDark.addEventListener("change", redraw);
  document.body.dataset.ready = "yes";
}

// Numbers by size, words by the alphabet, empty cells last.
function compareCells(left, right) {
  if (left.text === "" || right.text === "") return (left.text === "") - (right.text === "");
  if (left.value !== null && right.value !== null) return left.value - right.value;
  return left.text.localeCompare(right.text, undefined, { numeric: true });
}

function cellOf(row, column) {
  const cell = row.cells[column];
  const value = cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  return { text: cell.textContent.trim(), value, row };
}

function sortBy(table, head) {
  const falls = head.getAttribute("aria-sort") === "ascending";
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", falls ? "descending" : "ascending");
  const cells = [...table.tBodies[0].rows].map((row) => cellOf(row, head.cellIndex));
  const sign = falls ? -1 : 1;
  cells.sort((left, right) => {
    const order = compareCells(left, right);
    return left.text === "" || right.text === "" ? order : sign * order;
  });
  table.tBodies[0].append(...cells.map((cell) => cell.row));
}

for (const table of document.querySelectorAll(".sortable")) {
  for (const head of table.tHead.rows[0].cells) {
    head.querySelector("button").addEventListener("click", () => sortBy(table, head));
    const first = table.tBodies[0].rows[0];
    if (first && first.cells[head.cellIndex].classList.contains("number")) head.classList.add("number");
  }
}
for (const button of document.querySelectorAll("[data-curve]")) {
  button.addEventListener("click", () => toggleCurve(button));
}
drawCharts();
