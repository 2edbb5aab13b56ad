// What recorded outcomes say: money spent and saved, and how often what was predicted came true.

import { get } from "./api.js";
import { $, bare, date, fitted, h, known, number, svg, table, usd } from "./dom.js";

const BAR = 26, WIDEST = 360, SIZE = 260, LEFT = 40, RIGHT = 12, TOP = 10, BOTTOM = 34;
let data = null;

export async function refresh() {
  data = await get("api/outcomes");
  const { reports, max_reports: most, since, spend, reliability } = data;
  $("outcomes-state").textContent = reports
    ? `${reports === most ? "newest " : ""}${reports} reports since ${date(since)}` : "no outcomes yet";
  options($("spend-baseline"), spend.always.map((entry) => entry.candidate));
  options($("reliability-candidate"), ["all candidates", ...reliability.candidates.map((entry) => entry.candidate)]);
  drawSpend();
  drawReliability();
}

/** Set the options of a select, and keep what is selected. */
function options(select, names) {
  const before = select.value;
  select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  if (names.includes(before)) select.value = before;
}

function drawSpend() {
  const { spend } = data;
  const baseline = spend.always.find((entry) => entry.candidate === $("spend-baseline").value);
  $("spend-choice").hidden = $("spend-bars").hidden = !baseline;
  $("spend-about").textContent = spendSentence(spend, baseline);
  if (baseline) $("spend-bars").replaceChildren(bars(spend.compared, baseline));
  const rows = spend.candidates.map((c) =>
    h("tr", {},
      h("th", { scope: "row" }, c.candidate),
      h("td", { class: "figure" }, c.calls.toLocaleString()),
      h("td", { class: "figure wide" }, `${c.input_tokens.toLocaleString()} / ${c.output_tokens.toLocaleString()}`),
      h("td", { class: "figure" }, usd(c.usd)),
      h("td", { class: "figure" }, known(c.score) ? number(c.score, 2) : "unknown")));
  const headings = [["Candidate"], ["Calls", "figure"], ["Tokens in / out", "figure wide"], ["Spent", "figure"], ["Mean score", "figure"]];
  $("spend-table").hidden = !rows.length;
  $("spend-table").replaceChildren(table(headings, rows, "Spent by candidate, most first"));
}

function spendSentence(spend, baseline) {
  if (!spend.calls) {
    return spend.with_usage
      ? "Usage was recorded, but not for candidates with known prices. Set their prices, or record cost_usd."
      : "No usage was recorded. Send `usage` with RecordOutcome: tokens, or what the call cost.";
  }
  const missing = spend.outcomes - spend.calls;
  const total = `${usd(spend.usd)} for ${spend.calls.toLocaleString()} calls${missing ? `; ${missing.toLocaleString()} more ${missing === 1 ? "has" : "have"} no known cost` : ""}.`;
  if (!baseline) return total;
  const { calls, usd: spent, probability } = spend.compared;
  const share = baseline.usd > 0 ? 1 - spent / baseline.usd : 0;
  const change = share >= 0 ? `${percent(share)} saved` : `${percent(-share)} more was spent`;
  const quality = known(probability) && known(baseline.probability)
    ? ` Predicted success: ${number(probability, 2)} as routed, ${number(baseline.probability, 2)} with it alone.` : "";
  const scope = calls === spend.calls ? "The same calls" : `The ${calls.toLocaleString()} calls with known tokens`;
  return `${total} ${scope} by ${baseline.candidate} alone would have cost about ${usd(baseline.usd)}: ${change}.${quality}`;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

/** Draw what was spent, and what the baseline would have cost. */
function bars(compared, baseline) {
  const width = Math.max(280, Math.min(560, $("spend-bars").clientWidth));
  const most = Math.max(compared.usd, baseline.usd) || 1;
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${4 * BAR}`, role: "img",
    "aria-label": `as routed ${usd(compared.usd)}, always ${baseline.candidate} ${usd(baseline.usd)}` });
  [["as routed", compared.usd, "mark"], [`always ${baseline.candidate}`, baseline.usd, "mark other"]].forEach(([name, cost, kind], i) => {
    const y = 2 * BAR * i;
    drawn.append(
      svg("text", { class: "name", x: 0, y: y + 16 }, `${name}: ${usd(cost)}`),
      svg("rect", { class: "track", x: 0, y: y + 22, width, height: 12, rx: 2 }),
      svg("rect", { class: kind, x: 0, y: y + 22, width: (width * cost) / most, height: 12, rx: 2 }));
  });
  return drawn;
}

function drawReliability() {
  const { reliability } = data;
  const name = $("reliability-candidate").value;
  const shown = reliability.candidates.find((entry) => entry.candidate === name) ?? reliability.all;
  $("reliability-figure").hidden = !shown;
  $("reliability-about").textContent = reliabilitySentence(reliability);
  $("reliability-table").hidden = !reliability.candidates.length;
  if (!shown) return;
  $("reliability-picture").replaceChildren(diagram(shown, name));
  const rows = reliability.candidates.map((c) =>
    h("tr", { class: c.candidate === name ? "selected" : null },
      h("th", { scope: "row" }, `${c.candidate} `, verdict(c)),
      h("td", { class: "figure" }, c.outcomes.toLocaleString()),
      h("td", { class: "figure" }, number(c.predicted, 2)),
      h("td", { class: "figure" }, number(c.observed, 2)),
      h("td", { class: "figure wide" }, gap(c))));
  const headings = [["Candidate"], ["Outcomes", "figure"], ["Predicted", "figure"], ["Observed", "figure"], ["Difference", "figure wide"]];
  $("reliability-table").replaceChildren(table(headings, rows, "Predicted and observed success by candidate"));
}

function reliabilitySentence({ all, without_prediction: without }) {
  if (!all) return without ? "No outcome has a prediction: its instruction is not remembered, or its candidate is not registered." : "No outcomes were recorded.";
  const error = ` ± ${number(2 * all.standard_error, 2)}`;
  const left = without ? ` ${without.toLocaleString()} ${without === 1 ? "outcome has" : "outcomes have"} no prediction.` : "";
  return `Before the correction by outcomes, ${number(all.predicted, 2)} was predicted on average and ${number(all.observed, 2)} was observed${error}.${left}`;
}

/** Say a difference that is more than chance in words too: color alone says it to few. */
function verdict({ observed, predicted, standard_error: error }) {
  const difference = observed - predicted;
  if (Math.abs(difference) < Math.max(2 * error, 0.02)) return null;
  return h("span", { class: "badge" }, difference < 0 ? "overrated" : "underrated");
}

function gap({ observed, predicted, standard_error: error }) {
  const difference = observed - predicted;
  return `${difference < 0 ? "−" : "+"}${number(Math.abs(difference), 2)} ± ${number(2 * error, 2)}`;
}

/** Draw observed over predicted success, with two standard errors, in groups of equal size. */
function diagram(shown, name) {
  const width = Math.min(fitted($("reliability-picture")), WIDEST), height = SIZE;
  const lowest = Math.min(...shown.bins.map((bin) => Math.min(bin.predicted, bin.observed - 2 * bin.standard_error)));
  const low = Math.max(0, Math.min(0.8, Math.floor(lowest * 10) / 10)), step = low < 0.5 ? 0.2 : 0.1;
  const scale = (share) => (share - low) / (1 - low);
  const x = (share) => LEFT + scale(share) * (width - LEFT - RIGHT);
  const y = (share) => TOP + (1 - scale(share)) * (height - TOP - BOTTOM);
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `observed over predicted success, ${name}; the table has the means` });
  for (let share = 1; share > low - 1e-9; share -= step) {
    drawn.append(svg("line", { class: "grid", x1: x(low), x2: x(1), y1: y(share), y2: y(share) }),
      svg("text", { class: "tick", x: LEFT - 6, y: y(share) + 4, "text-anchor": "end" }, share.toFixed(1)),
      svg("text", { class: "tick", x: x(share), y: height - 18, "text-anchor": "middle" }, share.toFixed(1)));
  }
  drawn.append(
    svg("line", { class: "diagonal", x1: x(low), x2: x(1), y1: y(low), y2: y(1) }),
    svg("text", { class: "tick", x: (x(low) + x(1)) / 2, y: height - 3, "text-anchor": "middle" }, "predicted; observed upwards"));
  for (const bin of shown.bins) {
    const error = 2 * bin.standard_error;
    const title = `${bin.outcomes} outcomes: predicted ${number(bin.predicted, 2)}, observed ${number(bin.observed, 2)}`;
    drawn.append(
      svg("line", { class: "whisker", x1: x(bin.predicted), x2: x(bin.predicted),
        y1: y(Math.min(1, bin.observed + error)), y2: y(Math.max(low, bin.observed - error)) }),
      svg("circle", { class: "spot first", cx: x(bin.predicted), cy: y(bin.observed), r: 4.5 }, svg("title", {}, title)));
  }
  return drawn;
}

export function start() {
  $("spend-baseline").addEventListener("change", drawSpend);
  $("reliability-candidate").addEventListener("change", drawReliability);
}
