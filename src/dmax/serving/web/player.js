/* Play, step and scrub through the passes of a run. */

import { el, icon, iconButton } from "./dom.js";

const WHOLE_REPLAY = 8000; // milliseconds, within what the eye can follow:
const SLOWEST = 400;
const FASTEST = 40;

export class Player {
  /**
   * @param passes how many there are to go through
   * @param onseek called with the pass to show, from 0
   */
  constructor(passes, onseek) {
    this.passes = passes;
    this.onseek = onseek;
    this.timer = null;
    this.playButton = iconButton("play", "Play", () => this.toggle(), { quiet: true });
    this.playButton.classList.add("primary");
    this.range = el("input.scrubber", {
      type: "range", min: 0, max: passes, step: 1, value: passes, "aria-label": "Pass",
      oninput: () => { this.stop(); this.seek(Number(this.range.value)); },
    });
    this.counter = el("span.counter", { "aria-hidden": "true" });
    this.element = el("div.player", { role: "group", "aria-label": "Replay" },
      this.playButton,
      iconButton("back", "One pass back", () => { this.stop(); this.seek(this.pass - 1); }, { quiet: true }),
      iconButton("forward", "One pass on", () => { this.stop(); this.seek(this.pass + 1); }, { quiet: true }),
      this.range, this.counter);
  }

  get pass() {
    return Number(this.range.value);
  }

  seek(pass) {
    const shown = Math.min(Math.max(pass, 0), this.passes);
    this.range.value = shown;
    this.range.style.setProperty("--share", this.passes ? shown / this.passes : 1);
    this.counter.textContent = `pass ${shown} / ${this.passes}`;
    this.range.setAttribute("aria-valuetext", this.onseek(shown));
  }

  toggle() {
    if (this.timer !== null) {
      this.stop();
      return;
    }
    this.seek(this.pass < this.passes ? this.pass : 0);
    const pause = Math.min(Math.max(WHOLE_REPLAY / this.passes, FASTEST), SLOWEST);
    this.timer = setInterval(() => {
      this.seek(this.pass + 1);
      if (this.pass >= this.passes) this.stop();
    }, pause);
    this.#label("pause", "Pause");
  }

  stop() {
    if (this.timer === null) return;
    clearInterval(this.timer);
    this.timer = null;
    this.#label("play", "Play");
  }

  #label(name, text) {
    this.playButton.replaceChildren(icon(name));
    this.playButton.setAttribute("aria-label", text);
  }
}
