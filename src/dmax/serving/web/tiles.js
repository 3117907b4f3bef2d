/*
 * An answer as tiles: a bare tile is a mask, a shaded one a token the model may still take back, plain text is settled.
 *
 * A soft token is drawn as the model is fed it, p parts token and 1 - p parts mask; the line under it is as long as p.
 */

import { el, percent } from "./dom.js";

// A model may emit any character; none of them may be invisible.
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/g;

export class Tiles {
  constructor() {
    this.element = el("div.tiles", { "aria-hidden": "true", dir: "auto" });
    this.slots = [];
    this.flashes = 0;
  }

  /** Show cells; slots that stay are changed in place, so that the styles can fade from one pass to the next. */
  draw(cells) {
    this.flashes += 1;
    while (this.slots.length > cells.length) this.slots.pop().element.remove();
    while (this.slots.length < cells.length) {
      const slot = new Slot();
      this.slots.push(slot);
      this.element.append(slot.element);
    }
    cells.forEach((cell, index) => this.slots[index].draw(cell, this.flashes));
  }
}

/** The place of one token: white space that it brings stands outside the tile, so that lines break as in the text. */
class Slot {
  constructor() {
    this.before = document.createTextNode("");
    this.tile = el("span.tile");
    this.after = document.createTextNode("");
    this.element = el("span.slot", {}, this.before, this.tile, this.after);
  }

  draw(cell, flash) {
    const [before, text, after] = parts(cell);
    const state = stateOf(cell);
    this.before.data = before;
    this.after.data = after;
    if (this.tile.textContent !== text) this.tile.textContent = text;
    this.tile.dataset.state = state;
    this.tile.style.setProperty("--p", cell.masked ? 0 : cell.confidence.toFixed(3));
    this.tile.classList.toggle("promoted", cell.promoted);
    this.tile.classList.toggle("was-revised", cell.wasRevised && cell.place === "answer" && !cell.masked);
    // Two names for one animation: a token revised in two passes running flashes twice.
    if (cell.revised) this.tile.dataset.revised = flash % 2 ? "odd" : "even";
    else delete this.tile.dataset.revised;
    this.tile.title = state === "soft" ? `${cell.text.trim() || "white space"}: ${percent(cell.confidence)}` : "";
  }
}

function stateOf(cell) {
  if (cell.masked) return "mask";
  if (cell.place !== "answer") return cell.place;
  return cell.settled ? "settled" : "soft";
}

/** White space before, what stands in the tile, white space after. */
function parts(cell) {
  if (cell.masked || cell.place === "padding") return ["", "", ""];
  if (cell.place === "end") return ["", "end", ""];
  const [, before, text, after] = /^(\s*)(.*?)(\s*)$/s.exec(cell.text.replace(CONTROLS, "\ufffd"));
  if (text || cell.settled) return [before, text, after];
  return before.includes("\n") ? ["", "↵", before] : ["", before.replace(/\s/g, "\u00a0"), ""];
}
