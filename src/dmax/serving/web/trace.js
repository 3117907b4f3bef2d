/*
 * What an answer looked like after each of its passes: plain data, no drawing.
 *
 * A run is what `dmax generate --trace` writes (the fields of the answer, `prompt_ids`, `trace`), with the `prompt` as
 * text and `pieces`, the text of every token id in it. While an answer is being decoded its run has no `text` yet.
 */

const SPECIAL_TOKEN = /^<[^<>\s]+>$/;

/** Take in a record as the server tells it. */
export function addRecord(run, { type, pieces, ...record }) {
  record.tokens.forEach((id, offset) => { run.pieces[id] = pieces[offset]; });
  run.trace.push(record);
}

/** How many passes there are so far. Blocks in flight together have a record each of the same pass. */
export const passCount = (run) => run.trace.at(-1)?.pass_number ?? 0;

/** The records of one pass. */
const recordsOf = (run, pass) => run.trace.filter((record) => record.pass_number === pass);

/** The answer after some passes: one cell for each of its positions so far. After 0 passes, the masks it began with. */
export function cellsAfter(run, passes) {
  const mask = maskId(run);
  const latest = new Map();
  const revised = new Set();
  for (const record of run.trace) {
    if (record.pass_number > passes) break;
    latest.set(record.block, record);
    for (const offset of record.revised) revised.add(record.start + offset);
  }
  const cells = passes > 0 ? [] : firstMasks(run);
  for (const [, record] of [...latest].sort(([one], [other]) => one - other)) {
    const isNew = record.pass_number === passes;
    for (const offset of record.active) cells.push(cellOf(run, record, offset, isNew, mask, revised));
  }
  return placed(run, cells);
}

function cellOf(run, record, offset, isNew, mask, revised) {
  const id = record.tokens[offset];
  const position = record.start + offset;
  return {
    position,
    id,
    text: run.pieces[id] ?? `${id} `,
    confidence: Math.min(Math.max(record.confidence[offset], 0), 1),
    masked: id === mask,
    settled: record.final,
    promoted: isNew && record.promoted.includes(offset),
    revised: isNew && record.revised.includes(offset),
    wasRevised: revised.has(position),
    place: "answer",
  };
}

/** Tell the answer from the EOS, from the padding behind it, and from what lies beyond the length asked for. */
function placed(run, cells) {
  const limit = run.params?.gen_length ?? Infinity;
  const ends = endIds(run);
  let ended = false;
  cells.forEach((cell, index) => {
    const isEnd = !cell.masked && (ends === null ? SPECIAL_TOKEN.test(cell.text) : ends.includes(cell.id));
    if (ended) cell.place = "padding";
    else if (index >= limit) cell.place = "cut";
    else if (isEnd) cell.place = "end";
    ended ||= isEnd;
  });
  return cells;
}

function firstMasks(run) {
  const [first] = run.trace;
  const start = first ? first.start + first.active[0] : run.prompt_ids?.length ?? 0;
  const count = first ? first.active.length : run.block_length - (start % run.block_length);
  return Array.from({ length: count || 0 }, (_, offset) => ({
    position: start + offset, id: null, text: "", confidence: 0, masked: true, settled: false,
    promoted: false, revised: false, wasRevised: false, place: "answer",
  }));
}

/** Id of the mask token. Where the run does not name it: what a block's first pass left undecided. */
export function maskId(run) {
  if (run.mask_token_id !== null && run.mask_token_id !== undefined) return run.mask_token_id;
  const seen = new Set();
  for (const record of run.trace) {
    const left = seen.has(record.block) ? undefined : record.active.find((offset) => !record.promoted.includes(offset));
    if (left !== undefined) return record.tokens[left];
    seen.add(record.block);
  }
  return null;
}

/** Ids of the EOS; null where the run neither names them nor has ended with one. */
function endIds(run) {
  if (run.eos_token_ids) return run.eos_token_ids;
  const ids = run.token_ids ?? [];
  return run.finish_reason === "stop" && ids.length === run.num_tokens + 1 ? ids.slice(-1) : null;
}

/** What the answer had cost after some passes; the engine's own numbers once it is whole. */
export function costAfter(run, passes, cells) {
  const whole = run.nfe !== undefined && passes === passCount(run);
  const prefill = run.nfe !== undefined ? run.nfe - run.passes : Number((run.prompt_ids?.length ?? 0) >= run.block_length);
  const tokens = whole ? run.num_tokens : cells.filter((cell) => cell.place === "answer" && !cell.masked).length;
  const nfe = passes && passes + prefill;
  const seconds = run.clock?.[passes - 1];
  return {
    passes,
    tokens,
    tpf: nfe ? tokens / nfe : null,
    tps: run.tps ?? (seconds ? tokens / seconds : null),
    revisions: sumOf(run.trace.filter((record) => record.pass_number <= passes), "revised"),
  };
}

/** One sentence about a pass, for a slider's value. */
export function describePass(run, passes, cells) {
  if (!passes) return `Before the first pass: ${cells.length} masks`;
  const records = recordsOf(run, passes);
  const parts = [`${sumOf(records, "promoted")} promoted`, `${sumOf(records, "revised")} revised`];
  if (records.some((record) => record.final)) parts.push("block settled");
  return `Pass ${Math.min(passes, passCount(run))} of ${passCount(run)}: ${parts.join(", ")}`;
}

const sumOf = (records, list) => records.reduce((sum, record) => sum + record[list].length, 0);

/** The options that shaped an answer, in few words. */
export function describeRule({ params }) {
  const names = {
    threshold: "threshold", acceptance_threshold: "acceptance", low_threshold: "low", editing_threshold: "editing",
  };
  const told = Object.entries(names).filter(([key]) => typeof params?.[key] === "number");
  const parts = told.map(([key, name]) => `${name} ${params[key]}`);
  if (params?.temperature > 0) parts.push(`temperature ${params.temperature}`);
  if (params?.buffer_size > 1) parts.push(`${params.buffer_size} blocks in flight`);
  return parts.join(" · ");
}
