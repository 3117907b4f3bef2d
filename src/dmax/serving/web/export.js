/* A replay as one HTML file that needs nothing else: the template the server gives, with the runs put in as JSON. */

const MARK = "@RUNS@"; // as in dmax/serving/replay.py, whose escapes these are too

/** What is kept of a run: not when its passes happened to arrive here. */
function record({ clock, ...run }) {
  return run;
}

function jsonForHtml(value) {
  const unsafe = /[<>&\u2028\u2029]/g;
  return JSON.stringify(value).replace(unsafe, (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** Let the browser save the replay of some runs. */
export async function saveReplay(runs) {
  const reply = await fetch("web/replay-template.html");
  if (!reply.ok) throw new Error(`the server has no template for replays (status ${reply.status}).`);
  const template = await reply.text();
  const page = template.replace(MARK, () => jsonForHtml(runs.map(record)));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([page], { type: "text/html" }));
  link.download = `dmax-${runs.map((run) => run.decoder).join("-vs-")}.html`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
