// The candidates: prices, capabilities, and their aptitude test results as charts.

import { get } from "./api.js";
import { $, h, known, number, svg, table } from "./dom.js";

const MAX_ROWS = 100;
const BAR_WIDTH = 3, STRIP_HEIGHT = 22, CHAR_WIDTH = 6.2;
let data = null;
let selected = [];
let setAside = {};

/** Draw the test result with the tasks in the same order for every candidate. */
function strip(candidate) {
  const picture = svg("svg", { class: "strip", viewBox: `0 0 ${BAR_WIDTH * data.tasks.length} ${STRIP_HEIGHT}`,
    preserveAspectRatio: "none", role: "img",
    "aria-label": `aptitude of ${candidate.id}: mean accuracy ${number(candidate.mean_accuracy, 2)}` });
  for (const [task, accuracy] of candidate.aptitude) {
    const height = Math.max(1, accuracy * STRIP_HEIGHT);
    picture.append(svg("rect", { class: "heat", x: BAR_WIDTH * task, width: BAR_WIDTH - 0.4, y: STRIP_HEIGHT - height, height,
      "fill-opacity": (0.25 + 0.75 * accuracy).toFixed(2) },
    svg("title", {}, `${data.tasks[task]}: ${number(accuracy, 2)}`)));
  }
  return picture;
}

function price(candidate) {
  if (!known(candidate.input_usd_per_million)) return "unknown";
  return `$${candidate.input_usd_per_million} / $${candidate.output_usd_per_million}`;
}

function features(candidate) {
  const all = ["modalities", "features", "tags", "regions"].flatMap((list) => candidate[list] ?? []);
  return all.map((word) => h("span", { class: "badge" }, word));
}

function row(candidate) {
  const box = h("input", { type: "checkbox", "aria-label": `compare ${candidate.id}`, checked: selected.includes(candidate.id) });
  box.addEventListener("change", () => {
    selected = box.checked ? [...selected, candidate.id].slice(-2) : selected.filter((id) => id !== candidate.id);
    draw();
    $("candidates-table").querySelector(`[aria-label="compare ${CSS.escape(candidate.id)}"]`)?.focus();
  });
  return h("tr", {},
    h("td", {}, box),
    h("th", { scope: "row" }, candidate.id, candidate.display_name && candidate.display_name !== candidate.id
      ? h("span", { class: "also" }, candidate.display_name) : null,
    h("span", { class: "aside", "data-candidate": candidate.id }, setAside[candidate.id] ?? "")),
    h("td", {}, strip(candidate)),
    h("td", { class: "figure wide" }, number(candidate.mean_accuracy, 2)),
    h("td", { class: "figure" }, price(candidate)),
    h("td", { class: "figure wide" }, known(candidate.context_window) ? candidate.context_window.toLocaleString() : "unknown"),
    h("td", { class: "wide" }, ...features(candidate)));
}

function draw() {
  const filter = $("candidates-filter").value.toLowerCase();
  const matching = data.candidates.filter((c) => `${c.id} ${c.display_name ?? ""}`.toLowerCase().includes(filter));
  const headings = [["Compare", "check"], ["Candidate"], ["Aptitude"], ["Mean", "figure wide"], ["$ per million in / out", "figure"],
    ["Context", "figure wide"], ["Reads, supports, is tagged", "wide"]];
  const rows = matching.slice(0, MAX_ROWS).map(row);
  if (matching.length > MAX_ROWS) {
    rows.push(h("tr", {}, h("td", { colspan: "7" }, `${matching.length - MAX_ROWS} more; use the filter`)));
  }
  const empty = data.candidates.length
    ? "No candidate has this in its ID or name."
    : "No candidate is registered; `modelsat candidates create FILE` registers one.";
  $("candidates-table").replaceChildren(rows.length ? table(headings, rows, "Candidates") : h("p", { class: "about" }, empty));
  compare();
}

function compare() {
  const pair = selected.map((id) => data.candidates.find((c) => c.id === id)).filter(Boolean);
  $("compare").hidden = !pair.length;
  if (!pair.length) return;
  $("compare-title").replaceChildren(
    h("span", { class: "key first" }, pair[0].id),
    pair[1] ? h("span", { class: "key second" }, pair[1].id) : " select a second one to compare",
    pair[1] ? ` ${sentence(pair)}` : "");
  $("compare-picture").replaceChildren(tasks(pair));
}

const accuracies = (pair) => pair.map((c) => new Map(c.aptitude));

function sentence(pair) {
  const [first, second] = accuracies(pair);
  const both = [...first.keys()].filter((task) => second.has(task));
  const wins = both.filter((task) => first.get(task) > second.get(task)).length;
  const losses = both.filter((task) => first.get(task) < second.get(task)).length;
  return `better at ${wins} and ${losses} of ${both.length} tasks`;
}

/** Draw a line for each task with the accuracies of both, sorted by the gap between them. */
function tasks(pair) {
  const [first, second = first] = accuracies(pair);
  const both = [...first.keys()].filter((task) => second.has(task));
  const gap = (task) => first.get(task) - second.get(task);
  both.sort((a, b) => gap(b) - gap(a) || first.get(b) - first.get(a));
  const width = Math.max(280, Math.min(800, $("compare-picture").clientWidth));
  const step = 17, left = Math.round(0.42 * width), right = 24, top = 20;
  const letters = Math.floor((left - 12) / CHAR_WIDTH);
  const x = (share) => left + share * (width - left - right);
  const picture = svg("svg", { class: "tasks", viewBox: `0 0 ${width} ${top + step * both.length + 4}`, role: "img",
    "aria-label": `accuracy by task of ${pair.map((c) => c.id).join(" and ")}` });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    picture.append(svg("line", { class: "grid", x1: x(share), x2: x(share), y1: top - 4, y2: top + step * both.length }),
      svg("text", { class: "tick", x: x(share), y: 11, "text-anchor": "middle" }, String(share)));
  }
  both.forEach((task, i) => {
    const y = top + step * i + step / 2;
    const name = data.tasks[task], short = name.length > letters ? `${name.slice(0, letters - 1)}…` : name;
    const a = first.get(task), b = second.get(task);
    picture.append(svg("g", {},
      svg("title", {}, `${name}: ${number(a, 2)}${second === first ? "" : ` and ${number(b, 2)}`}`),
      svg("text", { class: "task", x: left - 12, y: y + 4, "text-anchor": "end" }, short),
      svg("line", { class: a >= b ? "gap first" : "gap second", x1: x(second === first ? 0 : a), x2: x(b), y1: y, y2: y }),
      second === first ? null : svg("circle", { class: "spot second", cx: x(b), cy: y, r: 4.5 }),
      svg("circle", { class: "spot first", cx: x(a), cy: y, r: 4.5 })));
  });
  return picture;
}

/** Show which candidates get no requests for a time. reasons: ID -> why, as in api/info. */
export function showSetAside(reasons) {
  setAside = reasons;
  for (const note of $("candidates-table").querySelectorAll(".aside")) {
    note.textContent = reasons[note.dataset.candidate] ?? "";
  }
}

export async function refresh() {
  data = await get("api/candidates");
  draw();
}

export function start() {
  $("candidates-filter").addEventListener("input", draw);
}
