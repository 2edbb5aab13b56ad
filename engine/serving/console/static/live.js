// The newest decisions as they are made.

import { stream } from "./api.js";
import { $, clock, h, ms, number, table, usd } from "./dom.js";

const SHOWN = 50;
const AGAIN_MS = 2000;
let newest = [], last = 0, missed = 0, paused = false, withText = false;

function take(event, data) {
  if (event === "missed") missed += data;
  else if (event === "message") {
    last = data.number;
    newest = [data, ...newest].slice(0, SHOWN);
  } else if (event === "alive") draw();
}

function draw() {
  if (paused) return;
  $("live-state").textContent = "watching";
  $("live-state").className = "state good";
  const headings = [["Time"], ["Selected"], ["Probability", "figure"], ["Cost", "figure wide"],
    ["Tokens", "figure wide"], ["ms", "figure"], [withText ? "Text" : "Why", "wide"]];
  const rows = newest.map((d) =>
    h("tr", {},
      h("td", { class: "time" }, clock(d.time)),
      h("th", { scope: "row" }, d.selected, d.kind === "ranked" ? null : h("span", { class: "badge" }, d.kind)),
      h("td", { class: "figure" }, number(d.probability)),
      h("td", { class: "figure wide" }, usd(d.expected_cost_usd)),
      h("td", { class: "figure wide" }, String(d.input_tokens)),
      h("td", { class: "figure" }, ms(d.total_ms)),
      h("td", { class: "wide why" }, (withText && d.text) || d.reason)));
  const empty = h("p", { class: "about" }, "No decision since the server started. Dry runs are not shown.");
  $("live-table").replaceChildren(rows.length ? table(headings, rows, "Newest decisions, newest first") : empty);
  const told = [`${last} since the start, the newest ${newest.length} shown`];
  if (missed) told.push(`${missed} missed by this page`);
  if (!withText) told.push("instructions are not shown (--audit-include-text)");
  $("live-about").textContent = told.join(" · ");
}

async function watch() {
  for (;;) {
    let why = "the stream ended";
    try {
      await stream(`api/decisions?after=${last}`, take);
    } catch (error) {
      why = error.message;
    }
    $("live-state").textContent = `${why}; trying again`;
    $("live-state").className = "state bad";
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

/** info: of the server. */
export function start(info) {
  withText = info.shows_text;
  $("live-pause").addEventListener("click", () => {
    paused = !paused;
    $("live-pause").setAttribute("aria-pressed", String(paused));
    $("live-pause").textContent = paused ? "Go on" : "Pause";
    if (paused) {
      $("live-state").textContent = "paused";
      $("live-state").className = "state";
    } else draw();
  });
  watch();
}
