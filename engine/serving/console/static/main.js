// Starts the sections and keeps them up to date while the page can be seen.

import { get } from "./api.js";
import * as ask from "./ask.js";
import * as candidates from "./candidates.js";
import { $, show } from "./dom.js";
import * as latency from "./latency.js";
import * as live from "./live.js";
import * as revisions from "./revisions.js";

const EVERY_MS = 5000;
let shown = 0;

function tell(info) {
  const store = info.store_connected ? "" : " · the store is away";
  $("info").textContent =
    `${info.version} · ${info.candidates} candidates, revision ${info.revision} · ` +
    `${info.waiting} of ${info.max_queue_size} waiting · ${info.backend}${store}`;
}

async function refresh() {
  const info = await get("api/info");
  tell(info);
  await latency.refresh();
  if (Number(info.revision) !== shown) {
    await candidates.refresh();
    await revisions.refresh(Number(info.revision));
    shown = Number(info.revision);
  }
  return info;
}

async function keepUp() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    if (document.hidden) continue;
    try {
      await refresh();
      show("problem", "");
    } catch (error) {
      show("problem", `The server does not answer as it should: ${error.message}`);
    }
  }
}

ask.start();
candidates.start();
try {
  live.start(await refresh());
} catch (error) {
  show("problem", `${error.message}; reload the page.`);
}
keepUp();
