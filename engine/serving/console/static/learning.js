// What the server learned from outcomes: its learning curve, and where it differs most.

import { get } from "./api.js";
import { $, bare, date, h, number, svg, table } from "./dom.js";

const HEIGHT = 220, LEFT = 46, RIGHT = 14, TOP = 12, BOTTOM = 34;

export async function refresh() {
  const { served, curve, regions } = await get("api/adaptation");
  $("learning-state").textContent = summary(served);
  $("learning-about").textContent = served.reason;
  $("learning-curve").replaceChildren(curve.length > 1 ? picture(curve) : h("p", { class: "about" }, "No more than one fit yet."));
  $("learning-regions").replaceChildren(regions.length ? list(regions) : h("p", { class: "about" }, "Not enough recent decisions."));
}

function summary(served) {
  if (!served.id) return "nothing learned yet";
  const outcomes = Object.entries(served.outcomes).map(([name, count]) => `${count} ${name}`).join(", ");
  const state = served.active ? "in use" : "not in use";
  const at = served.as_of ? `, newest ${date(Date.parse(served.as_of) / 1000)}` : "";
  return `${served.id} ${state}${served.frozen ? ", frozen" : ""} · ${served.instructions} instructions: ${outcomes}${at}`;
}

/** Draw the log loss of left-out outcomes over the number of instructions, before and after. */
function picture(points) {
  const width = Math.max(280, Math.min(560, $("learning-curve").clientWidth));
  const losses = points.flatMap((p) => [p.log_loss_before, p.log_loss_after]);
  const low = Math.min(...losses) - 0.01, high = Math.max(...losses) + 0.01;
  const most = Math.max(...points.map((p) => p.instructions), 1);
  const x = (count) => LEFT + (count / most) * (width - LEFT - RIGHT);
  const y = (loss) => TOP + ((high - loss) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img",
    "aria-label": "Log loss of left-out outcomes over the number of instructions, before and after the correction" });
  for (const share of [0, 0.5, 1]) {
    const loss = low + share * (high - low);
    drawn.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(loss), y2: y(loss) }),
      svg("text", { class: "tick", x: LEFT - 6, y: y(loss) + 4, "text-anchor": "end" }, number(loss)),
      svg("text", { class: "tick", x: x(share * most), y: HEIGHT - 18, "text-anchor": "middle" }, String(Math.round(share * most))));
  }
  drawn.append(svg("text", { class: "tick", x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "instructions with outcomes"));
  for (const [field, kind] of [["log_loss_before", "line before"], ["log_loss_after", "line"]]) {
    const path = points.map((p) => `${x(p.instructions)},${y(p[field])}`).join(" ");
    drawn.append(svg("polyline", { class: kind, points: path }));
  }
  return drawn;
}

function list(regions) {
  const rows = regions.map((r, i) =>
    h("tr", {},
      h("th", { scope: "row" }, r.categories.join(", ") || (r.coverage < 0.5 ? "not remembered" : `region ${i + 1}`)),
      h("td", { class: "figure wide" }, String(r.decisions)),
      h("td", { class: "figure wide" }, number(r.shift)),
      h("td", { class: "figure" }, `${Math.round(100 * r.changed)} %`),
      h("td", {}, r.candidates.filter((c) => number(c.before, 2) !== number(c.after, 2)).map((c) => `${bare(c.candidate)} ${number(c.before, 2)} → ${number(c.after, 2)}`).join(" · "))));
  const headings = [["Region"], ["Decisions", "figure wide"], ["Mean shift of p", "figure wide"], ["Changed", "figure"], ["Candidates that differ most"]];
  return table(headings, rows, "Regions of recent decisions, those that differ most first");
}
