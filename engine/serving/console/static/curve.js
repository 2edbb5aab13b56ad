// Expected cost and probability of every candidate, and the path that a falling willingness to pay takes.

import { bare, known, number, svg, usd } from "./dom.js";

const HEIGHT = 300, LEFT = 40, RIGHT = 14, TOP = 14, BOTTOM = 36;
const CHAR = 6.1, LINE = 13;

/** Draw the chart. width: in CSS pixels. */
export function curve(decision, steps, width) {
  const priced = decision.ranking.filter((r) => known(r.expected_cost_usd) && r.expected_cost_usd > 0);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img",
    "aria-label": "Probability over expected cost; the table has the values" });
  if (!priced.length) return picture;
  const at = scales(priced, width);
  picture.append(...axes(at));
  const path = steps.filter((s) => known(s.expected_cost_usd) && s.expected_cost_usd > 0);
  const points = path.map((s) => `${at.x(s.expected_cost_usd)},${at.y(s.probability)}`).join(" ");
  picture.append(svg("polyline", { class: "line", points }));
  const chosen = new Set(path.map((s) => s.candidate));
  for (const r of priced) {
    const kind = r.candidate === decision.selected ? "dot now" : chosen.has(r.candidate) ? "dot on" : "dot";
    const title = `${bare(r.candidate)}: ${number(r.probability)} for ${usd(r.expected_cost_usd)}`;
    picture.append(svg("circle", { class: kind, cx: at.x(r.expected_cost_usd), cy: at.y(r.probability),
      r: r.candidate === decision.selected ? 6 : 4 }, svg("title", {}, title)));
  }
  const named = priced.filter((r) => chosen.has(r.candidate) || r.candidate === decision.selected);
  picture.append(...labels(named, [...dots(priced, at), ...along(path, at)], at));
  return picture;
}

function scales(priced, width) {
  const logs = priced.map((r) => Math.log10(r.expected_cost_usd));
  const low = Math.min(...logs) - 0.1, high = Math.max(...logs) + 0.1;
  const p = priced.map((r) => r.probability);
  const bottom = Math.max(0, Math.floor((Math.min(...p) - 0.03) * 10) / 10);
  const top = Math.min(1, Math.ceil((Math.max(...p) + 0.03) * 10) / 10);
  return {
    low, high, bottom, top, width,
    x: (cost) => LEFT + ((Math.log10(cost) - low) / (high - low)) * (width - LEFT - RIGHT),
    y: (share) => HEIGHT - BOTTOM - ((share - bottom) / (top - bottom)) * (HEIGHT - TOP - BOTTOM),
  };
}

function axes(at) {
  const drawn = [];
  const step = at.top - at.bottom > 0.5 ? 0.2 : 0.1;
  for (let share = at.bottom; share <= at.top + 1e-9; share += step) {
    const y = at.y(share);
    drawn.push(svg("line", { class: "grid", x1: LEFT, x2: at.width - RIGHT, y1: y, y2: y }),
      svg("text", { class: "tick", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, share.toFixed(1)));
  }
  let last = -Infinity;
  for (let power = Math.floor(at.low); power <= Math.ceil(at.high); power++) {
    for (const times of at.high - at.low > 1.6 ? [1, 3] : [1, 2, 5]) {
      const cost = times * 10 ** power;
      const x = at.x(cost);
      if (x < LEFT || x > at.width - RIGHT - 8 || x - last < 48) continue;
      last = x;
      drawn.push(svg("line", { class: "grid", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }),
        svg("text", { class: "tick", x, y: HEIGHT - BOTTOM + 15, "text-anchor": "middle" }, `$${Number(cost.toPrecision(1))}`));
    }
  }
  drawn.push(svg("text", { class: "tick", x: (LEFT + at.width - RIGHT) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, "expected cost, US dollars"));
  return drawn;
}

const around = (x, y, by) => [x - by, y - by, x + by, y + by];

const dots = (priced, at) => priced.map((r) => around(at.x(r.expected_cost_usd), at.y(r.probability), 6));

/** Return small boxes along the line, which labels must not cover. */
function along(path, at) {
  return path.slice(1).flatMap((end, i) => {
    const x0 = at.x(path[i].expected_cost_usd), y0 = at.y(path[i].probability);
    const dx = at.x(end.expected_cost_usd) - x0, dy = at.y(end.probability) - y0;
    const count = Math.ceil(Math.hypot(dx, dy) / 8);
    return Array.from({ length: count }, (_, k) => around(x0 + (dx * k) / count, y0 + (dy * k) / count, 2));
  });
}

/** Place each name so that it covers no box of `taken` ([left, top, right, bottom]) and no other name. */
function labels(named, taken, at) {
  const free = (box) => box[0] >= LEFT && box[2] <= at.width && box[1] >= 0 && box[3] <= HEIGHT - BOTTOM &&
    !taken.some((t) => box[0] < t[2] && t[0] < box[2] && box[1] < t[3] && t[1] < box[3]);
  const drawn = [];
  for (const r of named) {
    const name = bare(r.candidate), width = CHAR * name.length;
    const x = at.x(r.expected_cost_usd), y = at.y(r.probability);
    const places = [];
    for (const dy of [0, 14, -14, 22, -22, 30, -30]) {
      places.push([x + 9, y + dy], [x - 9 - width, y + dy], [x - width / 2, y + (dy || 17)]);
    }
    const place = places.find(([left, middle]) => free([left, middle - LINE / 2, left + width, middle + LINE / 2]));
    if (!place) continue;
    const [left, middle] = place;
    taken.push([left, middle - LINE / 2, left + width, middle + LINE / 2]);
    drawn.push(svg("text", { class: "name", x: left, y: middle + 4 }, name));
  }
  return drawn;
}
