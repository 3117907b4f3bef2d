/* One answer, or several to the same prompt side by side: drawn while they decode, replayed afterwards. */

import { copyButton, el, iconButton } from "./dom.js";
import { HeatMap, legend } from "./heatmap.js";
import { Player } from "./player.js";
import { Tiles } from "./tiles.js";
import { cellsAfter, costAfter, describePass, describeRule, passCount } from "./trace.js";

const FRAME = 50; // milliseconds between two pictures of an answer that is being decoded
const MOST_BEHIND = 24; // passes that a picture may trail; beyond, several are drawn at once

/** What stands in the place of an answer without text. */
export const NO_TEXT = "The answer is empty: the model ended it at once.";

/** The picture of one run. */
class Pane {
  constructor(run, named) {
    this.run = run;
    this.pass = 0;
    this.tiles = new Tiles();
    this.text = el("p.answer", { hidden: true, dir: "auto" });
    this.rule = el("span.rule");
    this.cost = el("dl.cost");
    this.note = el("p.note", { hidden: true });
    this.element = el("section.pane", { "aria-label": run.decoder },
      el("h3", { hidden: !named }, run.decoder, " ", this.rule),
      this.stage = el("div.stage", {}, this.text, this.tiles.element), this.note, this.cost);
    this.show(0);
    new ResizeObserver(() => this.hold()).observe(this.element);
  }

  /** Whether no more passes will come. */
  get over() {
    return this.run.text !== undefined || this.run.ended !== undefined;
  }

  /** Draw the next pass, or the next few where the picture is far behind. True where something changed. */
  advance() {
    const behind = passCount(this.run) - this.pass;
    if (behind > 0) this.show(this.pass + Math.max(1, behind - MOST_BEHIND));
    return behind > 0;
  }

  /** Show the answer after some passes; the whole answer as plain text. Returns that pass in words. */
  show(pass) {
    const { run } = this;
    this.pass = Math.min(pass, passCount(run));
    const cells = cellsAfter(run, this.pass);
    const isWhole = typeof run.text === "string" && this.pass === passCount(run);
    this.tiles.draw(cells);
    this.tiles.element.hidden = isWhole;
    this.text.textContent = isWhole ? run.text : "";
    this.text.hidden = !isWhole;
    if (isWhole && isEmpty(run)) this.text.replaceChildren(el("em", {}, NO_TEXT));
    this.reached = costAfter(run, this.pass, cells);
    this.cost.replaceChildren(...costs(this.reached));
    this.rule.textContent = describeRule(run);
    this.heatMap?.show(this.pass);
    this.hold();
    return describePass(run, this.pass, cells);
  }

  /** Let the stage only grow, so that what is below it stays in place while passes come and go. */
  hold() {
    const width = this.stage.clientWidth;
    if (width !== this.heldWidth) this.stage.style.minHeight = "";
    this.heldWidth = width;
    this.stage.style.minHeight = `${this.stage.scrollHeight}px`;
  }

  /** The heat map, which follows the picture from now on; an empty place where there was no pass. */
  addMap(onpick) {
    if (!this.run.trace.length) return el("div");
    this.heatMap = new HeatMap(this.run, onpick);
    return this.heatMap.element;
  }

  /** Say something under the answer; where there is none yet, in its place. */
  say(sentence, isError) {
    this.stage.hidden = this.cost.hidden = !this.run.trace.length;
    this.note.classList.toggle("error", isError);
    if (isError) this.note.setAttribute("role", "alert"); // before the text, whose change is what is announced
    this.note.hidden = false;
    this.note.textContent = sentence;
  }

  /** A button for the answer's text; null where there is none. */
  copyButton() {
    return isEmpty(this.run) ? null : copyButton(() => this.run.text);
  }
}

/** Whether an answer has nothing to read, or is not whole. */
export const isEmpty = (run) => !run.text?.trim();

function costs({ passes, tokens, tpf, tps, revisions }) {
  const rows = [
    ["passes", "passes", passes],
    ["tokens", "tokens", tokens],
    ["TPF", "tokens per forward", tpf === null ? "–" : tpf.toFixed(2)],
    ["TPS", "tokens per second", tps === null ? "–" : tps.toFixed(tps < 10 ? 1 : 0)],
    ["revisions", "revisions", revisions],
  ];
  return rows.map(([unit, meaning, value]) =>
    el("div", {}, el("dt", { title: meaning }, unit), el("dd", {}, String(value))));
}

export class Replay {
  /**
   * @param runs of one prompt, finished or not
   * @param tools further buttons for the finished answer
   */
  constructor(runs, tools = []) {
    this.runs = runs;
    this.tools = tools;
    this.panes = runs.map((run) => new Pane(run, runs.length > 1));
    this.element = el("div.replay", {}, el("div.panes", {}, ...this.panes.map((pane) => pane.element)));
    this.element.classList.toggle("several", runs.length > 1);
  }

  /** What the answers had cost at the passes that are shown, one for each run. */
  get reached() {
    return this.panes.map((pane) => pane.reached);
  }

  /** Draw passes as they come, until all runs are over and drawn. */
  follow(onframe = () => {}) {
    return new Promise((resolve) => {
      const timer = setInterval(() => {
        const changed = this.panes.map((pane) => pane.advance()).includes(true);
        if (changed) onframe();
        if (changed || !this.panes.every((pane) => pane.over)) return;
        clearInterval(timer);
        resolve();
      }, FRAME);
    });
  }

  /** Draw what is there at once, in place of pass by pass. */
  catchUp() {
    for (const pane of this.panes) pane.show(passCount(pane.run));
  }

  /** Say something about one of the runs, beside its answer. */
  say(index, sentence, isError = false) {
    this.panes[index].say(sentence, isError);
  }

  /** Offer what can be done with finished runs: scrub, look at the heat map, and the further tools. */
  finish({ mapOpen = false } = {}) {
    const passes = Math.max(...this.runs.map(passCount));
    this.element.classList.add("finished");
    if (!passes) return;
    this.player = new Player(passes, (pass) => this.panes.map((pane) => pane.show(pass)).join("; "));
    const onpick = (pass) => { this.player.stop(); this.player.seek(pass); };
    const maps = this.panes.map((pane) => pane.addMap(onpick));
    this.mapArea = el("div.map-area", { hidden: true }, legend(), el("div.maps", {}, ...maps));
    this.mapButton = iconButton("map", "Heat map", () => this.showMaps(this.mapArea.hidden));
    const copies = this.panes.map((pane) => pane.copyButton());
    const isOne = this.panes.length === 1;
    if (!isOne) this.panes.forEach((pane, index) => pane.element.append(el("div.tools", {}, copies[index])));
    const tools = el("div.tools", {}, isOne ? copies[0] : null, this.mapButton, ...this.tools);
    this.element.append(el("div.controls", {}, this.player.element, tools), this.mapArea);
    this.showMaps(mapOpen);
    this.player.seek(passes);
  }

  /** Stop and show the whole answer without its map: something newer is being looked at. */
  fold() {
    if (!this.player) return;
    this.player.stop();
    this.player.seek(this.player.passes);
    this.showMaps(false);
  }

  showMaps(isOpen) {
    this.mapArea.hidden = !isOpen;
    this.mapButton.setAttribute("aria-expanded", String(isOpen));
  }
}
