// Start the sections, and keep them up to date while the page is visible.

import { get } from "./api.js";
import * as ask from "./ask.js";
import * as candidates from "./candidates.js";
import { $, show } from "./dom.js";
import * as learning from "./learning.js";
import * as live from "./live.js";
import * as outcomes from "./outcomes.js";
import * as revisions from "./revisions.js";

const REFRESH_MS = 5000, LEARNING_MS = 30000;
let shownRevision = 0, shownLearning = -Infinity;

function showInfo(info) {
  const store = info.store_connected ? "" : " · candidate store disconnected";
  const failing = Object.keys(info.set_aside).length;
  const aside = failing ? `, ${failing} set aside` : "";
  $("info").textContent =
    `${info.version} · ${info.candidates} candidates${aside}, revision ${info.revision} · ` +
    `${info.waiting} of ${info.max_queue_size} waiting · ${info.backend}${store}`;
}

async function refresh() {
  const info = await get("api/info");
  showInfo(info);
  if (Number(info.revision) !== shownRevision) {
    await candidates.refresh();
    await revisions.refresh(Number(info.revision));
    shownRevision = Number(info.revision);
  }
  candidates.showSetAside(info.set_aside);
  if (performance.now() - shownLearning > LEARNING_MS) {
    shownLearning = performance.now();
    await learning.refresh();
    await outcomes.refresh();
  }
  return info;
}

async function keepUp() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, REFRESH_MS));
    if (document.hidden) continue;
    try {
      await refresh();
      show("problem", "");
    } catch (error) {
      show("problem", `No valid answer from the server: ${error.message}`);
    }
  }
}

ask.start();
candidates.start();
outcomes.start();
try {
  const info = await refresh();
  ask.useServersOwn(info);
  live.start(info);
} catch (error) {
  show("problem", `${error.message}. Reload the page.`);
}
keepUp();
