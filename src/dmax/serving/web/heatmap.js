/*
 * The heat map of a run: a row for every pass, a column for every position, the colour is the confidence.
 *
 * Colour is not all there is to see: an undecided position is a small square, a decided one fills its cell, a revised
 * one carries a bar. A readout names the cell under the pointer or under the cursor that the arrow keys move.
 */

import { counted, el, percent } from "./dom.js";
import { cellsAfter, maskId, passCount } from "./trace.js";

const MOST_HEIGHT = 264;
const ROW = [1, 12];
const COLUMN = [2, 16];
const ROOM_FOR_GAPS = 5;

export class HeatMap {
  /**
   * @param run with at least one pass
   * @param onpick called with a pass that was chosen on the map
   */
  constructor(run, onpick) {
    this.run = run;
    this.onpick = onpick;
    this.mask = maskId(run);
    this.columns = columnsOf(run);
    this.rows = passCount(run);
    this.pass = this.rows;
    this.cursor = null;
    this.canvas = el("canvas", {
      tabIndex: 0, role: "application", "aria-roledescription": "heat map",
      "aria-label": `Confidence of ${this.columns.length} positions in ${this.rows} passes. `
        + "Arrow keys move from cell to cell, Enter shows the pass.",
      onpointermove: (event) => this.point(this.cellAt(event)),
      onpointerleave: () => { if (document.activeElement !== this.canvas) this.point(null); },
      onclick: (event) => { const cell = this.cellAt(event); if (cell) onpick(cell.row + 1); },
      onfocus: () => { if (!this.cursor) this.point({ row: Math.max(this.pass - 1, 0), column: 0 }); },
      onblur: () => this.point(null),
      onkeydown: (event) => this.key(event),
    });
    this.readout = el("output.readout", {}, "");
    this.element = el("figure.heatmap", {},
      el("div.scroller", {}, this.canvas),
      el("figcaption", {}, this.readout, summary(run)));
    new ResizeObserver(() => this.draw()).observe(this.element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    this.point(null);
  }

  /** Mark the pass that is shown; later ones are pale. */
  show(pass) {
    this.pass = pass;
    this.draw();
  }

  draw() {
    const room = this.element.clientWidth;
    if (!room) return;
    this.width = between(COLUMN, room / this.columns.length);
    this.height = between(ROW, MOST_HEIGHT / this.rows);
    const scale = devicePixelRatio || 1;
    const [width, height] = [this.width * this.columns.length, this.height * this.rows];
    this.canvas.width = Math.ceil(width * scale);
    this.canvas.height = Math.ceil(height * scale);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    const pen = this.canvas.getContext("2d");
    pen.scale(scale, scale);
    const colours = palette(this.element);
    for (const record of this.run.trace) this.drawRecord(pen, record, colours);
    this.drawMarks(pen, colours);
  }

  drawRecord(pen, record, colours) {
    const row = record.pass_number - 1;
    const [gapX, gapY] = [this.width, this.height].map((size) => (size >= ROOM_FOR_GAPS ? 1 : 0));
    const revised = new Set(record.revised);
    for (const offset of record.active) {
      const column = this.columns.indexOf.get(record.start + offset);
      const [x, y] = [column * this.width, row * this.height];
      const [w, h] = [this.width - gapX, this.height - gapY];
      const later = row >= this.pass ? 0.3 : 1;
      pen.globalAlpha = later * (this.columns[column].place === "answer" ? 1 : 0.35);
      pen.fillStyle = blend(colours.low, colours.high, record.confidence[offset]);
      if (record.tokens[offset] === this.mask) pen.fillRect(x + w * 0.25, y + h * 0.25, w * 0.5, h * 0.5);
      else pen.fillRect(x, y, w, h);
      if (revised.has(offset)) {
        pen.fillStyle = colours.mark;
        pen.fillRect(x + w * 0.2, y + h / 2 - Math.max(h * 0.12, 0.5), w * 0.6, Math.max(h * 0.24, 1));
      }
    }
    pen.globalAlpha = 1;
  }

  drawMarks(pen, colours) {
    pen.strokeStyle = colours.ink;
    pen.lineWidth = 1;
    const across = this.width * this.columns.length;
    if (this.pass > 0 && this.pass < this.rows) {
      const y = Math.round(this.pass * this.height) - 0.5;
      pen.strokeRect(-1, y, across + 2, 0);
    }
    if (this.cursor) {
      pen.lineWidth = 2;
      pen.strokeRect(this.cursor.column * this.width, this.cursor.row * this.height, this.width, this.height);
    }
  }

  /** Put the cursor on a cell, or take it away, and say what stands there. */
  point(cell) {
    this.cursor = cell;
    this.readout.textContent = cell ? this.describe(cell) : "Point at a cell, or use the arrow keys.";
    this.readout.classList.toggle("pointed", Boolean(cell));
    this.draw();
  }

  describe({ row, column }) {
    const { position } = this.columns[column];
    const head = `Pass ${row + 1}, position ${position}`;
    const holds = (record) => record.active.includes(position - record.start);
    const record = this.run.trace.find((each) => each.pass_number === row + 1 && holds(each));
    if (!record) {
      const begun = this.run.trace.some((each) => each.pass_number <= row && holds(each));
      return `${head}: ${begun ? "settled earlier" : "its block has not begun"}`;
    }
    const offset = position - record.start;
    const id = record.tokens[offset];
    const text = (this.run.pieces[id] ?? `token ${id}`).trim() || "white space";
    const what = id === this.mask ? "mask" : `“${text}”`;
    const change = record.promoted.includes(offset) ? ", promoted" : record.revised.includes(offset) ? ", revised" : "";
    return `${head}: ${what}, ${percent(record.confidence[offset])}${change}`;
  }

  cellAt(event) {
    const column = Math.floor(event.offsetX / this.width);
    const row = Math.floor(event.offsetY / this.height);
    const isInside = column >= 0 && column < this.columns.length && row >= 0 && row < this.rows;
    return isInside ? { row, column } : null;
  }

  key(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const from = this.cursor ?? { row: 0, column: 0 };
    if (event.key in moves) {
      const [down, right] = moves[event.key];
      this.point({
        row: between([0, this.rows - 1], from.row + down),
        column: between([0, this.columns.length - 1], from.column + right),
      });
    } else if (event.key === "Enter" || event.key === " ") {
      this.onpick(from.row + 1);
    } else {
      return;
    }
    event.preventDefault();
  }
}

const between = ([least, most], value) => Math.min(Math.max(value, least), most);

/** The final cells in order, and the column of each position. */
function columnsOf(run) {
  const cells = cellsAfter(run, passCount(run));
  cells.indexOf = new Map(cells.map((cell, index) => [cell.position, index]));
  return cells;
}

function palette(element) {
  const style = getComputedStyle(element);
  const read = (name) => style.getPropertyValue(name).trim();
  return { low: rgb(read("--heat-low")), high: rgb(read("--heat-high")), mark: read("--heat-mark"), ink: read("--ink") };
}

const rgb = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

/** Confidence squared: what matters is how far it is from sure. */
function blend(low, high, confidence) {
  const share = Math.min(Math.max(confidence, 0), 1) ** 2;
  return `rgb(${low.map((value, index) => Math.round(value + (high[index] - value) * share)).join(" ")})`;
}

/** What the signs mean; one legend serves several maps. */
export function legend() {
  return el("div.legend", { "aria-hidden": "true" },
    el("span", {}, "passes ↓ positions →"),
    el("span", {}, el("i.key.small"), "mask"),
    el("span", {}, el("i.key.full"), "decided"),
    el("span", {}, el("i.key.stroke"), "revised"),
    el("span", {}, "unsure ", el("i.ramp"), " sure"));
}

/** What the map shows, in words, block by block. */
function summary(run) {
  const blocks = new Map();
  for (const record of run.trace) blocks.set(record.block, [...(blocks.get(record.block) ?? []), record]);
  const items = [...blocks.values()].map((records, index) => {
    const revisions = records.reduce((sum, record) => sum + record.revised.length, 0);
    const [first, last] = [records[0], records[records.length - 1]].map((record) => percent(meanConfidence(record)));
    return el("li", {}, `Block ${index + 1}: ${counted(records[0].active.length, "position")} in `
      + `${counted(records.length, "pass", "passes")}, mean confidence from ${first} to ${last}, ${counted(revisions, "revision")}.`);
  });
  return el("ul.for-screen-readers", {}, ...items);
}

function meanConfidence(record) {
  return record.active.reduce((sum, offset) => sum + record.confidence[offset], 0) / record.active.length;
}
