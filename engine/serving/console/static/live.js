// The latest decisions, as they are made.

import { stream } from "./api.js";
import { $, clock, h, ms, number, table, usd } from "./dom.js";

const MAX_ROWS = 50;
const RETRY_MS = 2000;
let newest = [], last = 0, missed = 0, paused = false, withText = false;

function take(event, data) {
  if (event === "missed") missed += data;
  else if (event === "message") {
    last = data.number;
    newest = [data, ...newest].slice(0, MAX_ROWS);
  } else if (event === "alive") draw();
}

/** Say what the weights alone predicted, and which candidate they would have selected. */
function before(d) {
  if (d.base_probability === null || number(d.base_probability) === number(d.probability)) return null;
  const other = d.unadapted && d.unadapted !== d.selected ? `, else ${d.unadapted}` : "";
  return h("span", { class: "also" }, `before ${number(d.base_probability)}${other}`);
}

function draw() {
  if (paused) return;
  $("live-state").textContent = "connected";
  $("live-state").className = "state good";
  const headings = [["Time"], ["Selected"], ["Probability", "figure"], ["Cost", "figure wide"],
    ["Tokens", "figure wide"], ["ms", "figure"], [withText ? "Text" : "Reason", "wide"]];
  const rows = newest.map((d) =>
    h("tr", {},
      h("td", { class: "time" }, clock(d.time)),
      h("th", { scope: "row" }, d.selected, d.kind === "ranked" ? null : h("span", { class: "badge" }, d.kind.replace("_", " "))),
      h("td", { class: "figure" }, number(d.probability), before(d)),
      h("td", { class: "figure wide" }, usd(d.expected_cost_usd)),
      h("td", { class: "figure wide" }, String(d.input_tokens)),
      h("td", { class: "figure" }, ms(d.total_ms)),
      h("td", { class: "wide reason-cell" }, h("div", { title: (withText && d.text) || d.reason }, (withText && d.text) || d.reason))));
  const empty = h("p", { class: "about" }, "No decisions since the server started. Dry runs are not shown.");
  $("live-table").replaceChildren(rows.length ? table(headings, rows, "Latest decisions, newest first") : empty);
  const parts = [`${last} since the start, latest ${newest.length} shown`];
  if (missed) parts.push(`${missed} missed by this page`);
  if (!withText) parts.push("instructions are hidden (--audit-include-text shows them)");
  $("live-about").textContent = parts.join(" · ");
}

async function watch() {
  for (;;) {
    let problem = "the stream ended";
    try {
      await stream(`api/decisions?after=${last}`, take);
    } catch (error) {
      problem = error.message;
    }
    $("live-state").textContent = `${problem}; reconnecting`;
    $("live-state").className = "state bad";
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

/** Start the section. info: answer of api/info. */
export function start(info) {
  withText = info.shows_text;
  $("live-pause").addEventListener("click", () => {
    paused = !paused;
    $("live-pause").setAttribute("aria-pressed", String(paused));
    $("live-pause").textContent = paused ? "Resume" : "Pause";
    if (paused) {
      $("live-state").textContent = "paused";
      $("live-state").className = "state";
    } else draw();
  });
  watch();
}
