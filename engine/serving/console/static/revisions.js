// The revisions of the candidate table.

import { get } from "./api.js";
import { $, date, h, table } from "./dom.js";

export async function refresh(current) {
  const { revisions } = await get("api/revisions");
  const rows = revisions.map((r) =>
    h("tr", { class: r.number === current ? "selected" : null },
      h("th", { scope: "row" }, String(r.number), r.number === current ? h("span", { class: "badge" }, "served") : null),
      h("td", { class: "time" }, date(r.time)),
      h("td", {}, r.description),
      h("td", { class: "figure wide" }, String(r.candidates))));
  $("revisions-table").replaceChildren(
    table([["Revision"], ["Time"], ["Change"], ["Candidates", "figure wide"]], rows, "Revisions, newest first"));
}
