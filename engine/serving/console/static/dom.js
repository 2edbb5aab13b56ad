// Build HTML elements and SVG shapes, and format numbers. Text is always set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const h = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

/** Build a table. headings: [text, class]; rows: <tr> elements. */
export function table(headings, rows, caption) {
  const head = headings.map(([text, kind]) => h("th", { scope: "col", class: kind }, text));
  return h("table", {},
    h("caption", { class: "hidden" }, caption),
    h("thead", {}, h("tr", {}, ...head)),
    h("tbody", {}, ...rows));
}

export const bare = (name) => name.replace(/^candidates\//, "");
export const number = (value, digits = 3) => Number(value).toFixed(digits);
export const known = (value) => value !== null && value !== undefined;

export function usd(value) {
  if (!known(value)) return "unknown";
  if (value === 0) return "$0";
  return value < 0.1 ? `$${Number(value).toPrecision(3).replace(/e-(\d+)$/, "e-$1")}` : `$${value.toFixed(2)}`;
}

export function ms(value) {
  if (!known(value)) return "–";
  return value < 10 ? value.toFixed(2) : value < 100 ? value.toFixed(1) : value.toFixed(0);
}

const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const DATE = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
export const clock = (seconds) => CLOCK.format(new Date(1000 * seconds));
export const date = (seconds) => (known(seconds) ? DATE.format(new Date(1000 * seconds)) : "–");

/** Return the width for a chart in `node` that keeps its letters at their size. */
export const fitted = (node) => Math.max(280, Math.min(480, node.clientWidth));

export function show(id, text) {
  const node = $(id);
  node.textContent = text;
  node.hidden = !text;
}
