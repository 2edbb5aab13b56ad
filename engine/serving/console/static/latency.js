// How long decisions took lately, by phase and over time.

import { get } from "./api.js";
import { $, clock, fitted, h, known, ms, svg, table } from "./dom.js";

const PHASES = ["tokenize", "queue", "inference", "scoring", "selection", "total"];
const SHARES = ["p50", "p90", "p99"];
const HEIGHT = 190, LEFT = 44, RIGHT = 40, TOP = 10, BOTTOM = 24;
const SPAN_S = 600;

function phases(windows) {
  const names = Object.keys(windows);
  const headings = [["Phase"], ...names.flatMap((name) => SHARES.map((share, i) => [i ? share : `${name}: ${share}`, "figure"]))];
  const rows = PHASES.map((phase) =>
    h("tr", { class: phase === "total" ? "sum" : null }, h("th", { scope: "row" }, phase),
      ...names.flatMap((name) => SHARES.map((share) => h("td", { class: "figure" }, ms(windows[name][phase]?.[share]))))));
  const counts = names.map((name) => `${windows[name].total?.count ?? 0} in the last ${name}`).join(", ");
  rows.push(h("tr", {}, h("th", { scope: "row" }, "decisions"), h("td", { colspan: "6" }, counts)));
  return table(headings, rows, "Milliseconds by phase");
}

function picture(series, width) {
  const now = series.at(-1).at;
  const high = Math.max(1, ...series.map((s) => s.p99 ?? 0)) * 1.1;
  const x = (at) => LEFT + (1 - (now - at) / SPAN_S) * (width - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - (value / high) * (HEIGHT - TOP - BOTTOM);
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img",
    "aria-label": "p50 and p99 of a decision over the last ten minutes" });
  for (const part of [0, 0.5, 1]) {
    const value = (high / 1.1) * part;
    drawn.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, part ? ms(value) : "0"));
  }
  for (const ago of [600, 300, 0]) {
    const anchor = ago === 600 ? "start" : ago ? "middle" : "end";
    drawn.append(svg("text", { class: "tick", x: x(now - ago), y: HEIGHT - 6, "text-anchor": anchor }, clock(now - ago)));
  }
  for (const share of ["p99", "p50"]) {
    const measured = series.filter((s) => known(s[share]));
    if (!measured.length) continue;
    drawn.append(svg("polyline", { class: `line ${share}`, points: measured.map((s) => `${x(s.at)},${y(s[share])}`).join(" ") }));
    for (const s of measured) {
      drawn.append(svg("circle", { class: `point ${share}`, cx: x(s.at), cy: y(s[share]), r: 1.8 },
        svg("title", {}, `${clock(s.at)}: ${share} ${ms(s[share])} ms of ${s.count}`)));
    }
    const end = measured.at(-1);
    drawn.append(svg("text", { class: "name", x: Math.min(x(end.at) + 6, width - RIGHT + 6), y: y(end[share]) + 4 }, share));
  }
  return drawn;
}

export async function refresh() {
  const { windows, series } = await get("api/latency");
  $("latency-table").replaceChildren(phases(windows));
  $("latency-picture").replaceChildren(picture(series, fitted($("latency-picture"))));
}
