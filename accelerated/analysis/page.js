"use strict";
// Sorts tables, chooses runs and classes, filters and enlarges pictures. Everything that it shows
// stands in the page already; the page is whole without it.

const DATA = JSON.parse(document.getElementById("data").textContent);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);

document.documentElement.classList.add("script");

// Colours. A browser may refuse to remember them.
function remembered(value) {
  try {
    if (value) localStorage.setItem("report-colours", value);
    return localStorage.getItem("report-colours");
  } catch {
    return null;
  }
}
for (const choice of all("[name=scheme]")) {
  if (choice.id === remembered()) choice.checked = true;
  choice.addEventListener("change", () => remembered(choice.id));
}

// Tables: numbers are sorted from the highest first, and what has none stands last.
function value(row, column, text) {
  const shown = row.cells[column].textContent.trim();
  if (text) return shown.toLowerCase();
  const number = parseFloat(shown.replace(/,/g, "").replace("−", "-"));
  return Number.isNaN(number) ? null : number;
}
function sort(table, header) {
  const text = header.classList.contains("text");
  const before = header.getAttribute("aria-sort");
  const falling = before ? before === "ascending" : !text;
  for (const other of all("th", table.tHead)) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [value(row, header.cellIndex, text), row]);
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const order = text ? a.localeCompare(b) : a - b;
    return falling ? -order : order;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}
for (const table of all("table.sortable")) {
  for (const header of all("th", table.tHead)) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(table, header));
    header.append(button);
  }
}

// The curves of a class take the places of those of all classes.
const classes = byId("choose-class");
classes?.addEventListener("change", () => {
  const lines = DATA.paths[classes.value];
  for (const figure of all("#curves figure")) {
    for (const line of all("[data-key]", figure)) {
      const [path, height] = lines[line.dataset.key] ?? ["", null];
      line.setAttribute("d", path);
      const end = all("[data-end]", figure).find((text) => text.dataset.end === line.dataset.key);
      end?.setAttribute("y", height ?? -9);
    }
    const chart = figure.querySelector("svg");
    const name = classes.selectedOptions[0].text;
    chart.setAttribute("aria-label", `${figure.querySelector("b").textContent}, of ${name}`);
  }
});

// Pictures.
const filters = ["rank", "with-class", "with-error"].map(byId);
const groups = all("#pictures .of-run").map((group) => [
  all(".picture", group),
  DATA.pictures[group.dataset.run],
  group,
]);
function filter() {
  if (!filters[0]) return;
  const [rank, name, error] = filters.map((choice) => choice.value);
  const shown = byId("shown");
  shown.textContent = "No picture.";
  for (const [figures, keys, group] of groups) {
    figures.forEach((figure, index) => {
      const { rank: own, classes: names, errors } = keys[index];
      figure.hidden = !(
        (!rank || own === rank) &&
        (!name || names.includes(name)) &&
        (!error || errors.includes(error))
      );
    });
    const left = figures.filter((figure) => !figure.hidden).length;
    if (!group.hidden) shown.textContent = `${left} of ${figures.length} pictures`;
  }
}
if (filters[0]) {
  const names = new Set(DATA.pictures.flat().flatMap((keys) => keys.classes));
  for (const name of [...names].sort((a, b) => a.localeCompare(b))) {
    filters[1].add(new Option(name, name));
  }
  for (const choice of filters) choice.addEventListener("change", filter);
}

// One run at a time, where not all stand in one chart.
const runs = all(".choose-run");
function choose(run) {
  for (const other of runs) other.value = run;
  for (const part of all(".of-run")) part.hidden = part.dataset.run !== run;
  filter();
}
for (const choice of runs) choice.addEventListener("change", () => choose(choice.value));
if (runs.length) choose(runs[0].value);
filter();

// Enlarged pictures.
const large = byId("large");
let enlarged;
function enlarge(button) {
  enlarged = button;
  const sides = all("img", large);
  all("img", button).forEach((image, side) => {
    sides[side].src = image.src;
    sides[side].alt = image.alt;
  });
  byId("large-caption").textContent = button.nextElementSibling.textContent.replace(/\s+/g, " ");
  if (!large.open) large.showModal();
}
function step(by) {
  const shown = all(".picture .enlarge").filter((button) => button.offsetParent);
  enlarge(shown[(shown.indexOf(enlarged) + by + shown.length) % shown.length]);
}
if (large) {
  for (const button of all(".enlarge")) button.addEventListener("click", () => enlarge(button));
  byId("before").addEventListener("click", () => step(-1));
  byId("after").addEventListener("click", () => step(1));
  large.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) step(by);
  });
  large.addEventListener("click", (event) => {
    if (event.target === large) large.close();
  });
  large.addEventListener("close", () => enlarged.focus());
}
