/* The entry of a replay in a file of its own: the runs stand in the page as JSON. */

import { el } from "./dom.js";
import { Replay } from "./replay.js";

const runs = JSON.parse(document.getElementById("runs").textContent);

// Answers to one prompt belong side by side, whatever lies between them in the file.
const prompts = new Map();
for (const run of runs) {
  const key = JSON.stringify(run.prompt_ids ?? run.prompt);
  prompts.set(key, [...(prompts.get(key) ?? []), run]);
}

for (const group of prompts.values()) {
  const replay = new Replay(group);
  document.getElementById("replays").append(
    el("article.turn", {}, el("h2.prompt", { dir: "auto" }, group[0].prompt ?? ""), replay.element));
  replay.finish({ mapOpen: true });
}
document.getElementById("model").textContent = [...new Set(runs.map((run) => run.model ?? ""))].join(", ");
