// The compare page: metrics side by side, curves overlaid, configurations diffed. Uses the drawing of site.js.
"use strict";

const compare = document.getElementById("compare");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const runTitle = (run) => `${run.name}-seed${run.seed}`;
const runPlace = (run) => `${run.profile} · ${run.source}`;

// Keys in order of first appearance, each with one entry per run (undefined where a run lacks the key).
function sideBySide(runs, field) {
  const maps = runs.map((run) => new Map(run[field].map(([key, ...rest]) => [key, rest])));
  const keys = [...new Set(maps.flatMap((map) => [...map.keys()]))];
  return keys.map((key) => [key, maps.map((map) => map.get(key))]);
}

function differing(runs, field) {
  return sideBySide(runs, field).filter(([, entries]) => new Set(entries.map((entry) => entry?.[0])).size > 1);
}

function runHeader(run, index) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = colour(index);
  const header = element("th", { scope: "col" }, swatch, runTitle(run));
  header.append(element("span", { className: "cell-line", textContent: runPlace(run) }));
  return header;
}

function table(id, firstColumn, runs, rows, cellOf, sortable = true) {
  const head = element("tr", {}, element("th", { scope: "col", textContent: firstColumn }), ...runs.map(runHeader));
  const body = rows.map(([key, entries]) =>
    element("tr", {}, element("th", { scope: "row", textContent: key }), ...entries.map(cellOf)));
  const made = element("table", { className: "data" }, element("thead", {}, head), element("tbody", {}, ...body));
  if (sortable) {
    made.dataset.sortable = "";
    makeSortable(made);
  }
  const scroller = element("div", { className: "table-scroll", tabIndex: 0 }, made);
  scroller.setAttribute("role", "region");
  scroller.setAttribute("aria-labelledby", id);
  return scroller;
}

function section(id, title, ...content) {
  const made = element("section", { id }, element("h2", { id: `${id}-heading`, textContent: title }), ...content);
  made.setAttribute("aria-labelledby", `${id}-heading`);
  return made;
}

const note = (text) => element("p", { className: "empty", textContent: text });

function numberCell(entry) {
  if (!entry) return element("td", { className: "num muted", textContent: "–" });
  const cell = element("td", { className: "num", textContent: entry[1] });
  cell.dataset.sort = entry[0] ?? "";
  return cell;
}

function textCell(entry) {
  return entry ? element("td", { textContent: entry[0] }) : element("td", { className: "muted", textContent: "not set" });
}

function numbersSection(id, title, firstColumn, runs, field, empty) {
  const rows = sideBySide(runs, field);
  return section(id, title, rows.length ? table(`${id}-heading`, firstColumn, runs, rows, numberCell, field === "metrics") : note(empty));
}

function differenceSection(id, title, runs, field, same) {
  const rows = differing(runs, field);
  return section(id, title, rows.length ? table(`${id}-heading`, "Key", runs, rows, textCell) : note(same));
}

function curvesSection(runs) {
  const names = [...new Set(runs.flatMap((run) => run.curves.map(([name]) => name)))];
  if (!names.length) return section("compare-curves", "Curves", note("None of these runs recorded a curve."));
  const figures = names.map((name) => {
    const plot = element("div", { className: "plot" });
    plot.dataset.curve = name;
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", `${name} of ${runs.map(runTitle).join(", ")}`);
    return element("figure", { className: "chart" }, element("figcaption", {}, element("strong", { textContent: name })), plot);
  });
  const made = section("compare-curves", "Curves", element("div", { className: "charts" }, ...figures));
  drawWhenVisible(made.querySelectorAll(".plot"), (plot) => drawOverlay(plot, runs));
  return made;
}

function drawOverlay(plot, runs) {
  if (!plot.isConnected) return;
  let xLabel = "";
  const traces = runs.flatMap((run, index) => run.curves
    .filter(([name]) => name === plot.dataset.curve)
    .map(([, curve]) => {
      xLabel = curve.x_label;
      return lineTrace(`${runTitle(run)} (${runPlace(run)})`, curve.x, curve.y, index);
    }));
  draw(plot, traces, xLabel);
}

function startCompare() {
  const paper = document.getElementById("compare-paper");
  const list = document.getElementById("compare-runs");
  const filter = document.getElementById("compare-filter");
  const count = document.getElementById("compare-count");
  const result = document.getElementById("compare-result");
  let chosen = new Set();
  let runs = [];

  function showResult() {
    const selected = runs.filter((run) => chosen.has(run.key));
    count.textContent = `${selected.length} of ${runs.length} chosen`;
    result.replaceChildren();
    if (selected.length < 2) {
      result.append(note(selected.length ? "Choose at least one more run." : "Choose two or more runs to compare."));
      return;
    }
    result.append(
      numbersSection("compare-metrics", "Metrics", "Metric", selected, "metrics", "None of these runs recorded a metric."),
      curvesSection(selected),
      differenceSection("compare-config", "Configuration: what differs", selected, "config",
        "These runs have the same configuration."),
      numbersSection("compare-timing", "Time and memory", "Quantity", selected, "timing", ""),
      differenceSection("compare-environment", "Environment: what differs", selected, "environment",
        "These runs have the same environment."),
    );
  }

  function remember() {
    const parameters = new URLSearchParams({ paper: paper.value });
    chosen.forEach((key) => parameters.append("run", key));
    history.replaceState(null, "", `#${parameters}`);
  }

  function choiceOf(run) {
    const box = element("input", { type: "checkbox", value: run.key, checked: chosen.has(run.key) });
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(run.key); else chosen.delete(run.key);
      remember();
      showResult();
    });
    const what = `${runPlace(run)} · ${run.method} · ${run.dataset}${run.status === "failed" ? " · failed" : ""}`;
    return element("label", {}, box, element("span", { textContent: runTitle(run) }), element("small", { textContent: what }));
  }

  function showRuns() {
    list.replaceChildren(...runs.map(choiceOf));
    applyFilter();
    showResult();
  }

  function applyFilter() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const label of list.children) {
      label.hidden = !words.every((word) => label.textContent.toLowerCase().includes(word));
    }
  }

  async function showPaper(wanted = []) {
    const id = paper.value;
    try {
      if (!window.tenfold?.runs?.[id]) await loadScript(`data/${id}.js`);
    } catch (error) {
      result.replaceChildren(note(error.message));
      return;
    }
    if (paper.value !== id) return;
    runs = window.tenfold.runs[id];
    chosen = new Set(wanted.filter((key) => runs.some((run) => run.key === key)));
    showRuns();
  }

  paper.addEventListener("change", () => showPaper().then(remember));
  filter.addEventListener("input", applyFilter);
  document.getElementById("compare-clear").addEventListener("click", () => {
    chosen.clear();
    remember();
    showRuns();
  });
  darkScheme.addEventListener("change", showResult);

  const start = new URLSearchParams(location.hash.slice(1));
  if ([...paper.options].some((option) => option.value === start.get("paper"))) paper.value = start.get("paper");
  showPaper(start.getAll("run"));
}

if (compare) startCompare();
