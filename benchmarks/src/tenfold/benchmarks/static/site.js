// Sorting and filtering of tables, and the charts. Text of the records only ever enters the page as text.
"use strict";

const PALETTE = {
  light: ["#17666b", "#c2571a", "#4a5fb0", "#a3386c", "#6b7a1f", "#7a4fa3", "#0f7fb5", "#8c5a3c"],
  dark: ["#6fc3c3", "#f0a06a", "#9aaef5", "#ee8fbb", "#c3d36c", "#c9a5f0", "#6cc3f0", "#d6a88a"],
};
const DASHES = ["solid", "dash", "dot", "dashdot"];
const darkScheme = window.matchMedia("(prefers-color-scheme: dark)");

/* Tables ------------------------------------------------------------------------------------------------ */

function sortKey(row, column) {
  const cell = row.cells[column];
  return cell.dataset.sort ?? cell.textContent.trim();
}

// Numbers before text, missing values last in either direction.
function compareKeys(a, b, direction) {
  if ((a === "") !== (b === "")) return a === "" ? 1 : -1;
  const [x, y] = [Number(a), Number(b)];
  const [xIsText, yIsText] = [Number.isNaN(x), Number.isNaN(y)];
  if (!xIsText && !yIsText) return direction * (x - y);
  if (xIsText !== yIsText) return direction * (xIsText ? 1 : -1);
  return direction * a.localeCompare(b, "en", { numeric: true, sensitivity: "base" });
}

function sortTable(table, column) {
  const headers = [...table.tHead.rows[0].cells];
  const ascending = headers[column].getAttribute("aria-sort") !== "ascending";
  headers.forEach((header) => header.setAttribute("aria-sort", "none"));
  headers[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [sortKey(row, column), row]);
  rows.sort(([a], [b]) => compareKeys(a, b, ascending ? 1 : -1));
  body.append(...rows.map(([, row]) => row));
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    const label = document.createElement("span");
    label.append(...header.childNodes);
    button.append(label);
    header.append(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sortTable(table, column));
  });
}

function filterSection(section, words, output) {
  const rows = [...section.querySelectorAll("table[data-sortable] tbody tr")];
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += row.hidden ? 0 : 1;
  }
  for (const table of section.querySelectorAll("table[data-sortable]")) {
    const matches = [...table.tBodies[0].rows].some((row) => !row.hidden);
    const fold = table.closest("details.fold");
    (fold ?? table.closest(".table-scroll")).hidden = words.length > 0 && !matches;
    if (fold) openWhileFiltered(fold, words.length > 0 && matches);
  }
  output.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
}

// A folded table with a match is open while the filter holds, and afterwards as it was.
function openWhileFiltered(fold, isFiltered) {
  if (isFiltered) {
    fold.dataset.before ??= String(fold.open);
    fold.open = true;
  } else if (fold.dataset.before !== undefined) {
    fold.open = fold.dataset.before === "true";
    delete fold.dataset.before;
  }
}

function makeFilter(filter) {
  const section = document.getElementById(filter.dataset.filter);
  const [input, output] = [filter.querySelector("input"), filter.querySelector("output")];
  const apply = () => filterSection(section, input.value.toLowerCase().split(/\s+/).filter(Boolean), output);
  input.addEventListener("input", apply);
  if (input.value) apply();
}

/* Charts ------------------------------------------------------------------------------------------------ */

let plotlyScript = null;

function loadScript(address) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = address;
    script.onload = resolve;
    script.onerror = () => reject(new Error(`${address} is missing`));
    document.head.append(script);
  });
}

function loadPlotly() {
  plotlyScript ??= loadScript(document.querySelector("script[data-plotly]").dataset.plotly);
  return plotlyScript;
}

// Plotly reads a little HTML in its labels; ours are plain text.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function colour(index) {
  const colours = PALETTE[darkScheme.matches ? "dark" : "light"];
  return colours[index % colours.length];
}

// Every fourth method starts a new dash pattern, so that lines differ by more than colour.
const dash = (index) => DASHES[Math.floor(index / 4) % DASHES.length];

function translucent(hex, alpha) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${alpha})`;
}

// The band's outline, in one piece per stretch without gaps.
function bandTraces(band, index) {
  const traces = [];
  let start = 0;
  const flush = (end) => {
    if (end - start > 1) {
      const x = band.x.slice(start, end);
      traces.push({
        x: [...x, ...x.slice().reverse()],
        y: [...band.high.slice(start, end), ...band.low.slice(start, end).reverse()],
        fill: "toself", fillcolor: translucent(colour(index), 0.16), line: { width: 0 }, mode: "lines",
        hoverinfo: "skip", showlegend: false, legendgroup: `method-${index}`,
      });
    }
    start = end + 1;
  };
  band.mean.forEach((value, at) => { if (value === null) flush(at); });
  flush(band.mean.length);
  return traces;
}

function lineTrace(name, x, y, index) {
  return {
    x, y, name: plain(name), mode: x.length > 1 ? "lines" : "markers", connectgaps: false,
    legendgroup: `method-${index}`, line: { color: colour(index), width: 2, dash: dash(index) },
    marker: { color: colour(index), size: 7 },
    hovertemplate: `%{y:.4g}<extra>${plain(name)}</extra>`,
  };
}

function chartLayout(xLabel, rows) {
  const style = getComputedStyle(document.documentElement);
  const [ink, rule] = [style.getPropertyValue("--ink-soft").trim(), style.getPropertyValue("--rule").trim()];
  const axis = { gridcolor: rule, linecolor: rule, zeroline: false, ticks: "", automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
    margin: { l: 44, r: 8, t: 12, b: 36 }, hovermode: "x unified",
    hoverlabel: { bgcolor: style.getPropertyValue("--surface").trim(), bordercolor: rule },
    xaxis: { ...axis, title: { text: plain(xLabel), standoff: 6 } }, yaxis: axis,
    showlegend: rows > 0, legend: { orientation: "h", y: -0.22, yanchor: "top", x: 0, font: { size: 12 } },
  };
}

function draw(element, traces, xLabel) {
  element.classList.remove("waiting");
  const options = { responsive: true, displaylogo: false, displayModeBar: false };
  const layout = chartLayout(xLabel, traces.length);
  if (spansMagnitudes(traces)) layout.yaxis = { ...layout.yaxis, type: "log", dtick: 1 };
  return window.Plotly.react(element, traces, layout, options);
}

// A curve that falls by more than a factor of 30 shows its end only on a logarithmic axis.
function spansMagnitudes(traces) {
  const values = traces.flatMap((trace) => trace.y).filter((value) => value !== null);
  return values.length > 0 && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 30;
}

function drawLearningCurve(element) {
  const data = window.tenfold?.curves?.[element.dataset.paper];
  const figure = data?.figures[Number(element.dataset.chart)];
  if (!figure) return;
  const traces = figure.bands.flatMap((band) => {
    const index = data.methods.indexOf(band.method);
    return [...(band.seeds > 1 ? bandTraces(band, index) : []), lineTrace(band.method, band.x, band.mean, index)];
  });
  draw(element, traces, figure.x_label);
}

// Plotly is fetched only when the first chart comes near the window.
function drawWhenVisible(elements, drawOne) {
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((candidate) => candidate.isIntersecting)) {
      observer.unobserve(entry.target);
      loadPlotly().then(() => drawOne(entry.target), (error) => { entry.target.textContent = error.message; });
    }
  }, { rootMargin: "400px" });
  for (const element of elements) {
    element.classList.add("waiting");
    observer.observe(element);
  }
}

/* Start ------------------------------------------------------------------------------------------------- */

document.querySelectorAll("table[data-sortable]").forEach(makeSortable);
document.querySelectorAll("[data-filter]").forEach(makeFilter);
const charts = [...document.querySelectorAll(".plot[data-chart]")];
drawWhenVisible(charts, drawLearningCurve);
darkScheme.addEventListener("change", () => {
  charts.filter((chart) => !chart.classList.contains("waiting")).forEach(drawLearningCurve);
});
