// The ranking of a text, and what each willingness to pay would choose.

import { post } from "./api.js";
import { curve } from "./curve.js";
import { $, bare, fitted, h, known, ms, number, show, svg, table, usd } from "./dom.js";

const OOD_WARNING = 0.98;
let request = null;
let timer = 0;

/** Map slider positions 0 to 99 to $.001 to $1 in equal ratios, the recommended range, and 100 to quality alone. */
const willingness = (position) => (position < 100 ? Number((10 ** (position / 33 - 3)).toPrecision(2)) : Infinity);

/** Objectives that take a number of their own: its name, and where it starts. */
const LIMITS = {
  target_probability: ["Probability", "0.9"],
  budget_usd: ["US dollars a request", "0.001"],
};

const splitWords = (text) => text.split(/[\s,]+/).filter(Boolean);

function policy() {
  const field = (name) => $("ask-form").elements.namedItem(name).value;
  const names = (list) => splitWords(field(list)).map((id) => `candidates/${bare(id)}`);
  const result = {};
  const objective = $("ask-objective").value;
  if (objective in LIMITS) result[objective] = Number($("ask-limit-value").value);
  else if (objective) {
    const value = willingness(Number($("ask-willingness").value));
    result[objective] = value === Infinity ? "Infinity" : value; // as JSON of protos has it
  }
  result.allowed_candidates = names("allow");
  result.denied_candidates = names("deny");
  result.allowed_regions = splitWords(field("regions"));
  result.required_features = splitWords(field("features"));
  result.required_tags = splitWords(field("tags"));
  result.min_context_window = Number(field("min_context_window") || 0);
  result.abstain_below_probability = Number(field("abstain_below_probability") || 0);
  return result;
}

async function ask() {
  request?.abort();
  request = new AbortController();
  try {
    const body = { text: $("ask-text").value, policy: policy() };
    const answer = await post("api/route", body, request.signal);
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
  $("ask-summary").textContent = summary(decision);
  const unpriced = decision.ranking.filter((r) => !known(r.expected_cost_usd)).length;
  $("ask-unpriced").textContent = unpriced ? `${unpriced} candidates without a price are not shown.` : "";
  $("ask-answer").hidden = false;
  $("ask-curve").replaceChildren(curve(decision, steps, fitted($("ask-curve"))));
}

function ranking(decision) {
  const learned = decision.ranking.some((r) => known(r.base_probability));
  const rows = decision.ranking.map((r) => {
    const selected = r.candidate === decision.selected;
    return h("tr", { class: selected ? "selected" : null },
      h("th", { scope: "row" }, bare(r.candidate), selected ? h("span", { class: "badge" }, "selected") : null),
      h("td", { class: "bar" }, bar(r.probability), h("span", {}, number(r.probability))),
      learned ? h("td", { class: "figure wide" }, before(r)) : null,
      h("td", { class: "figure" }, usd(r.expected_cost_usd)),
      h("td", { class: "figure wide" }, r.utility < -1e9 ? "no price" : number(r.utility)));
  });
  // Those that the lists leave out come last: one knows them.
  const isListed = (e) => Number(/ the (allowed|denied) candidates$/.test(e.reason));
  const excluded = [...decision.excluded].sort((a, b) => isListed(a) - isListed(b)).map((e) =>
    h("tr", { class: "excluded" },
      h("th", { scope: "row" }, bare(e.candidate)),
      h("td", { colspan: learned ? "4" : "3" }, `excluded: ${e.reason}`)));
  const headings = [["Candidate"], ["Probability"], ...(learned ? [["Before, ± error", "figure wide"]] : []), ["Expected cost", "figure"], ["Utility", "figure wide"]];
  return table(headings, [...rows, ...excluded], "Candidates, best first");
}

const before = (r) =>
  known(r.base_probability) ? `${number(r.base_probability)} ± ${number(r.standard_error)}` : "";

const bar = (share) =>
  svg("svg", { class: "meter", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", width: 100, height: 8 }),
    svg("rect", { class: "mark", width: 100 * share, height: 8 }));

function summary(decision) {
  const parts = [
    `${decision.input_tokens} input tokens${decision.truncated ? ", truncated in the middle" : ""}`,
    `revision ${decision.revision}`,
    `${ms(1000 * parseFloat(decision.timing.total))} ms`,
  ];
  const kind = decision.kind.replace("DECISION_KIND_", "").toLowerCase();
  if (kind !== "ranked") parts.push(kind.replace("_", " "));
  if (decision.ood_score > OOD_WARNING) {
    parts.push("out of distribution: the probabilities are extrapolation");
  }
  return parts.join(" · ");
}

function showWillingness() {
  const value = willingness(Number($("ask-willingness").value));
  const text = value === Infinity ? "quality only" : `$${value} per success`;
  $("ask-willingness-value").textContent = text;
  $("ask-willingness").setAttribute("aria-valuetext", text);
}

/** Show the control of the objective: the slider, a number, or nothing. */
function showObjective() {
  const objective = $("ask-objective").value, [name, first] = LIMITS[objective] ?? [];
  $("ask-form").querySelector(".slider").hidden = objective !== "willingness_to_pay_usd";
  $("ask-limit").hidden = !name;
  if (!name) return;
  $("ask-limit-name").textContent = name;
  $("ask-limit-value").value = first;
}

/** Begin with what the server does for requests without an objective, if it weighs costs. info: answer of api/info. */
export function useServersOwn(info) {
  if (info.willingness_to_pay_usd === null) return;
  $("ask-own").textContent = `the server's own, $${info.willingness_to_pay_usd} per success`;
  $("ask-objective").value = "";
  showObjective();
}

export function start() {
  $("ask-objective").addEventListener("change", showObjective);
  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("ask-text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  });
  $("ask-willingness").addEventListener("input", () => {
    showWillingness();
    clearTimeout(timer);
    timer = setTimeout(ask, 120);
  });
  showWillingness();
  showObjective();
}
