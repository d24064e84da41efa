// Charts are drawn when they scroll into view, so that a page with many charts opens quickly.
const charts = JSON.parse(document.getElementById("charts").textContent);
const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
const hiddenCurves = new Set(); // labels of the hidden curves on a page of many runs
const isTouchDevice = window.matchMedia("(pointer: coarse)").matches;
const [xAxis, yScale, smoothing] = ["x-axis", "y-scale", "smoothing"].map((id) => document.getElementById(id));
const RELOAD_MS = 15000;

function listen(selector, event, action) {
  for (const element of document.querySelectorAll(selector)) element.addEventListener(event, () => action(element));
}

function getCssVariable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function buildLayout(chart) {
  const chartLayout = chart.layout;
  const axis = { gridcolor: getCssVariable("--grid"), linecolor: getCssVariable("--line"), zeroline: false, automargin: true, exponentformat: "e" };
  const mutedFont = { color: getCssVariable("--muted"), size: 11 };
  const legendEntryCount = chart.traces.filter((trace) => trace.showlegend !== false).length;
  const xTitle = chart.is_curve ? { title: { text: xAxis.selectedOptions[0].text, standoff: 6 } } : {};
  const yRange = chart.is_curve && yScale.value ? { type: yScale.value, range: undefined } : {};
  return {
    ...chartLayout,
    title: { text: chart.title, font: { size: 14, color: getCssVariable("--text") }, x: 0.02, xanchor: "left", y: 0.97 },
    xaxis: { ...axis, ...chartLayout.xaxis, ...xTitle },
    yaxis: { ...axis, ...chartLayout.yaxis, ...yRange },
    font: { family: getComputedStyle(document.body).fontFamily, ...mutedFont },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 48, r: 16, t: 40, b: 32 },
    showlegend: legendEntryCount > 1,
    legend: { orientation: "h", x: 0, y: -0.22, yanchor: "top", font: mutedFont },
    hoverlabel: { namelength: -1 },
    hovermode: chartLayout.hovermode || "x",
    dragmode: isTouchDevice ? false : "zoom",
  };
}

// Exponential moving average without a bias towards the first value.
function smooth(values, weight) {
  let sum = 0, norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    norm = weight * norm + 1 - weight;
    return sum / norm;
  });
}

function buildCurve(trace) {
  const factor = Number(xAxis.value), weight = Number(smoothing.value);
  return { ...trace, x: trace.x.map((step) => step * factor), y: trace.is_raw || !weight ? trace.y : smooth(trace.y, weight) };
}

function draw(box) {
  const chart = charts[Number(box.dataset.chart)];
  box.setAttribute("aria-label", chart.title);
  const traces = chart.traces.map((trace) => ({
    ...(chart.is_curve ? buildCurve(trace) : trace), visible: !hiddenCurves.has(trace.meta),
  }));
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

function download(button) {
  const box = button.closest(".plot").querySelector(".chart");
  const { title, traces } = charts[Number(box.dataset.chart)];
  const filename = (title || "chart").replace(/[^\w.-]+/g, "_");
  if (button.dataset.download === "png") {
    return Plotly.downloadImage(box, { format: "png", scale: 2, width: box.clientWidth, height: box.clientHeight, filename });
  }
  const rows = traces.flatMap(({ name, x, y }) => x.map((value, index) => [JSON.stringify(name), value, y[index]].join()));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([["curve,x,y", ...rows].join("\n")], { type: "text/csv" }));
  link.download = `${filename}.csv`;
  link.click();
  return URL.revokeObjectURL(link.href);
}

async function drawCharts() {
  const boxes = [...document.querySelectorAll(".chart")];
  if (!boxes.length) return;
  if (await loadPlotly()) {
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        observer.unobserve(entry.target);
        draw(entry.target);
      }
    }, { rootMargin: "300px" });
    boxes.forEach((box) => observer.observe(box));
    prefersDark.addEventListener("change", redraw);
  } else {
    document.body.classList.add("without-plotly");
  }
  document.body.dataset.ready = "yes";
}

// Sort numbers numerically and text alphabetically. Empty cells come last.
function sortBy(table, header) {
  const sign = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
  const read = (cell) => cell.dataset.value ?? cell.textContent.trim();
  const rows = [...table.tBodies[0].rows].sort((first, second) => {
    const [left, right] = [first, second].map((row) => read(row.cells[header.cellIndex]));
    if (left === "" || right === "") return (left === "") - (right === "");
    return sign * (left - right || left.localeCompare(right, undefined, { numeric: true }));
  });
  table.tBodies[0].append(...rows);
}

// Hide the rows without the text, and the pictures of their runs.
function filterRows(input) {
  const shownRuns = new Set();
  for (const row of document.getElementById(input.dataset.filter).tBodies[0].rows) {
    row.hidden = !row.textContent.toLowerCase().includes(input.value.toLowerCase());
    if (!row.hidden) shownRuns.add(row.cells[0].textContent);
  }
  for (const figure of document.querySelectorAll("[data-run]")) figure.hidden = !shownRuns.has(figure.dataset.run);
}

function toggleColumn(box) {
  const column = [...box.closest("details").querySelectorAll("input")].indexOf(box);
  for (const row of document.getElementById(box.dataset.column).rows) row.cells[column].hidden = !box.checked;
}

function showFrame(slider) {
  const [step, url] = JSON.parse(slider.dataset.frames)[Number(slider.value)];
  const figure = slider.closest("figure");
  figure.querySelector("img").src = url;
  figure.querySelector("output").textContent = `step ${step.toLocaleString("en")}`;
}

function copyCommand(button) {
  getSelection().selectAllChildren(button.nextElementSibling);
  document.execCommand("copy"); // also where a page from a disk has no other clipboard
  button.textContent = "copied";
}

for (const table of document.querySelectorAll(".sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    header.querySelector("button").addEventListener("click", () => sortBy(table, header));
    const first = table.tBodies[0].rows[0];
    if (first && first.cells[header.cellIndex].classList.contains("number")) header.classList.add("number");
  }
}
listen("[data-curve]", "click", toggleCurve);
listen("[data-download]", "click", download);
listen("[data-copy]", "click", copyCommand);
listen("[data-frames]", "input", showFrame);
listen("[data-filter]", "input", filterRows);
listen("[data-column]", "change", toggleColumn);
listen("[data-width]", "input", (slider) => {
  slider.closest("section").querySelector(".thumbnails").style.setProperty("--width", `${slider.value}px`);
});
for (const control of [xAxis, yScale, smoothing]) {
  if (!control) continue;
  control.value = sessionStorage.getItem(control.id) ?? control.value; // kept when the page of a running run reloads
  if (control.selectedIndex < 0) control.selectedIndex = 0;
  control.addEventListener("input", () => { sessionStorage.setItem(control.id, control.value); redraw(); });
}
if (document.body.dataset.state === "running") setInterval(() => document.hidden || location.reload(), RELOAD_MS);
window.addEventListener("load", drawCharts);
