// The ranked table of a text, and what cost sensitivity would choose of it.

import { post } from "./api.js";
import { curve } from "./curve.js";
import { $, bare, fitted, h, known, ms, number, show, svg, table, usd } from "./dom.js";

const STRANGE = 0.98;
let running = null;
let soon = 0;

/** Slider position 0..100 to 0, then .003 to 30 in equal ratios: the range of `modelsat calibrate`. */
const sensitivity = (position) => (position ? Number((0.003 * 10 ** (position / 25)).toPrecision(2)) : 0);

const words = (text) => text.split(/[\s,]+/).filter(Boolean);

function policy() {
  const field = (name) => $("ask-form").elements.namedItem(name).value;
  const asked = { cost_sensitivity: sensitivity(Number($("ask-sensitivity").value)) };
  asked.denied_candidates = words(field("deny")).map((id) => `candidates/${bare(id)}`);
  asked.features = words(field("features"));
  asked.tags = words(field("tags"));
  asked.min_context_window = Number(field("min_context_window") || 0);
  asked.abstain_below_probability = Number(field("abstain_below_probability") || 0);
  return asked;
}

async function ask() {
  running?.abort();
  running = new AbortController();
  try {
    const body = { text: $("ask-text").value, policy: policy() };
    const answer = await post("api/route", body, running.signal);
    show("ask-problem", "");
    draw(answer);
  } catch (error) {
    if (error.name === "AbortError") return;
    $("ask-answer").hidden = true;
    show("ask-problem", error.message);
  }
}

function draw({ decision, curve: steps }) {
  $("ask-reason").textContent = decision.reason;
  $("ask-ranking").replaceChildren(ranking(decision));
  $("ask-facts").textContent = facts(decision);
  const unpriced = decision.ranking.filter((r) => !known(r.expected_cost_usd)).length;
  $("ask-unpriced").textContent = unpriced ? `${unpriced} without a known price are not drawn.` : "";
  $("ask-answer").hidden = false;
  $("ask-curve").replaceChildren(curve(decision, steps, fitted($("ask-curve"))));
}

function ranking(decision) {
  const rows = decision.ranking.map((r) => {
    const selected = r.candidate === decision.selected;
    return h("tr", { class: selected ? "selected" : null },
      h("th", { scope: "row" }, bare(r.candidate), selected ? h("span", { class: "badge" }, "selected") : null),
      h("td", { class: "bar" }, bar(r.probability), h("span", {}, number(r.probability))),
      h("td", { class: "figure" }, usd(r.expected_cost_usd)),
      h("td", { class: "figure wide" }, number(r.utility)));
  });
  const excluded = decision.excluded.map((e) =>
    h("tr", { class: "excluded" },
      h("th", { scope: "row" }, bare(e.candidate)),
      h("td", { colspan: "3" }, `excluded: ${e.reason}`)));
  const headings = [["Candidate"], ["Probability"], ["Expected cost", "figure"], ["Utility", "figure wide"]];
  return table(headings, [...rows, ...excluded], "Candidates in the order in which they would be taken");
}

const bar = (share) =>
  svg("svg", { class: "meter", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", width: 100, height: 8 }),
    svg("rect", { class: "mark", width: 100 * share, height: 8 }));

function facts(decision) {
  const told = [
    `${decision.input_tokens} input tokens${decision.truncated ? ", read in head and tail" : ""}`,
    `revision ${decision.revision}`,
    `${ms(1000 * parseFloat(decision.timing.total))} ms`,
  ];
  const kind = decision.kind.replace("DECISION_KIND_", "").toLowerCase();
  if (kind !== "ranked") told.push(kind);
  if (decision.ood_score > STRANGE) {
    told.push("unlike the training instructions: these probabilities are extrapolation");
  }
  return told.join(" · ");
}

function slide() {
  const value = sensitivity(Number($("ask-sensitivity").value));
  $("ask-sensitivity-value").textContent = String(value);
  $("ask-sensitivity").setAttribute("aria-valuetext", `${value}, 0 is quality alone`);
}

export function start() {
  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("ask-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  });
  $("ask-sensitivity").addEventListener("input", () => {
    slide();
    clearTimeout(soon);
    soon = setTimeout(ask, 120);
  });
  slide();
}
