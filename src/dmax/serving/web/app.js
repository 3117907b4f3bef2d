/* The page: asks, shows, stops, begins anew. */

import { exampleFacts, modelFacts, settingFacts, traceAddress } from "./access.js";
import { Announcer } from "./announcer.js";
import { Turn } from "./conversation.js";
import { showIntro } from "./intro.js";
import { Settings } from "./settings.js";
import { Connection } from "./socket.js";

const byId = (id) => document.getElementById(id);
const page = {
  model: byId("model"), state: byId("state"), fresh: byId("fresh"), openSettings: byId("open-settings"),
  intro: byId("intro"), headline: document.querySelector("#intro h2"), examples: byId("examples"), legend: byId("legend"),
  turns: byId("turns"), composer: byId("composer"), problem: byId("problem"), prompt: byId("prompt"), rule: byId("rule"),
  compare: byId("compare"), second: byId("second"), secondDecoder: byId("second-decoder"),
  secondThreshold: byId("second-threshold"), send: byId("send"), stop: byId("stop"),
  drawer: byId("settings"), settingsForm: byId("settings-form"), fields: byId("fields"), defaults: byId("defaults"),
  keyDialog: byId("key-dialog"), keyForm: byId("key-form"), keyNote: byId("key-note"), key: byId("key"),
  forget: byId("forget"), announcer: byId("announcer"),
};
const STATES = { connecting: "", open: "", lost: "No connection; trying again …", refused: "The key is no longer accepted." };
const NEAR_THE_END = 160; // pixels
const COMPOSER_FADE = 10; // pixels; the see-through part of the composer's top

class Page {
  constructor(facts, schema, pair) {
    this.facts = facts;
    this.turns = [];
    this.running = null;
    this.announcer = new Announcer(page.announcer);
    this.connections = [
      new Connection(traceAddress, (state) => this.#connectionIs(state)),
      new Connection(traceAddress),
    ];
    this.settings = new Settings(page, schema, facts, pair, () => this.#settingsChanged());
    page.model.textContent = facts.id;
    this.#wire();
    this.#settingsChanged();
    this.connections[0].open();
  }

  #wire() {
    page.composer.onsubmit = (event) => {
      event.preventDefault();
      if (this.send(page.prompt.value)) page.prompt.value = "";
    };
    page.prompt.onkeydown = (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        page.composer.requestSubmit();
      }
    };
    page.stop.onclick = (event) => { if (event.detail < 2) this.stop(); }; // Stop stands where Send stood: a double click means that
    page.fresh.onclick = () => { if (this.#hasAnswers) page.forget.showModal(); else this.begin(); };
    page.forget.onclose = () => { if (page.forget.returnValue === "forget") this.begin(); };
    window.onbeforeunload = (event) => { if (this.#hasAnswers || this.running) event.preventDefault(); };
    for (const button of [page.openSettings, page.rule]) button.onclick = () => page.drawer.showModal();
    page.settingsForm.onsubmit = (event) => {
      event.preventDefault();
      const problem = this.settings.problem();
      if (problem?.inDrawer) problem.input.focus();
      else page.drawer.close();
    };
    page.drawer.onclick = (event) => { if (event.target === page.drawer) page.drawer.close(); };
    page.defaults.onclick = () => this.settings.reset();
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing && this.running && !page.drawer.open) this.stop();
    });
  }

  /**
   * Ask a question, unless an answer is under way or a setting is wrong.
   *
   * @param replaced the turn whose place the new one takes
   * @returns whether it is asked
   */
  send(prompt, replaced = null) {
    if (this.running || !prompt.trim()) return false;
    const problem = this.settings.problem();
    this.#complain(problem?.sentence ?? "");
    if (problem) {
      if (problem.inDrawer) page.drawer.showModal();
      problem.input.focus();
      return false;
    }
    const pressed = document.activeElement.closest("#intro, #turns"); // what was pressed is about to vanish
    if (replaced) this.#remove(replaced);
    const earlier = this.turns.flatMap((turn) => turn.exchange);
    const turn = new Turn(prompt.trim(), earlier, this.settings.requests(), this.facts);
    this.turns.push(turn);
    page.turns.append(turn.element);
    this.#follow(turn);
    if (pressed) page.stop.focus();
    return true;
  }

  async #follow(turn) {
    for (const earlier of this.turns) if (earlier !== turn) earlier.replay.fold();
    page.intro.hidden = page.fresh.hidden = true;
    this.#isRunning(turn);
    this.announcer.follow(() => turn.progress);
    turn.element.scrollIntoView({ block: "start" });
    const error = await turn.run(this.connections, () => this.#keepInView());
    this.#isRunning(null);
    page.fresh.hidden = false;
    this.announcer.over(turn.announcement);
    if (!turn.hasAnswer) this.#offerHelp(turn, error);
    if (error?.code === "invalid_api_key") {
      await modelFacts(page);
      this.#connectionIs("open");
    }
  }

  /** What failed by chance can be asked again; what was refused, or answered by nothing, would come to the same. */
  #offerHelp(turn, error) {
    const isInVain = error ? error.isAboutTheRequest : !turn.stopped;
    if (isInVain) turn.offer("edit", "Edit question", () => this.#edit(turn));
    else turn.offer("retry", "Try again", () => this.send(turn.prompt, turn));
  }

  #edit(turn) {
    this.#remove(turn);
    page.intro.hidden = this.turns.length > 0;
    page.fresh.hidden = !page.intro.hidden;
    page.prompt.value = [turn.prompt, page.prompt.value].filter(Boolean).join("\n");
    page.prompt.focus();
  }

  #remove(turn) {
    this.turns.splice(this.turns.indexOf(turn), 1);
    turn.element.remove();
  }

  get #hasAnswers() {
    return this.turns.some((turn) => turn.hasAnswer);
  }

  /** Ask a question of the two decoders that are worth comparing. */
  compare(prompt) {
    this.settings.choosePair();
    this.send(prompt);
  }

  stop() {
    if (!this.running) return;
    this.running.stop();
    for (const connection of this.connections) connection.close();
  }

  /** Forget the conversation. */
  begin() {
    this.turns = [];
    page.turns.replaceChildren();
    page.fresh.hidden = true;
    page.intro.hidden = false;
    page.forget.returnValue = "";
    this.announcer.say("");
    page.prompt.focus();
  }

  #isRunning(turn) {
    const held = document.activeElement;
    this.running = turn;
    page.send.hidden = Boolean(turn);
    page.stop.hidden = !turn;
    for (const button of page.turns.querySelectorAll(".again")) button.disabled = Boolean(turn);
    if (held === page.send || held === page.stop || held === page.fresh) page.prompt.focus();
  }

  #keepInView() {
    const below = document.documentElement.scrollHeight - innerHeight - scrollY;
    if (below < NEAR_THE_END) scrollTo({ top: document.documentElement.scrollHeight });
  }

  #settingsChanged() {
    page.rule.textContent = this.settings?.summary() ?? "";
    this.#complain("");
  }

  #complain(sentence) {
    page.problem.textContent = sentence;
    page.problem.hidden = !sentence;
  }

  #connectionIs(state) {
    page.state.textContent = STATES[state];
    if (state === "lost") this.wasLost = true;
    if (state === "open" && this.wasLost) this.#checkModel();
  }

  /** Say so where a server that has come back is not the one that this page was made for. */
  async #checkModel() {
    this.wasLost = false;
    const { id } = await modelFacts(page).catch(() => this.facts);
    if (id !== this.facts.id) page.state.textContent = `Now ${id} is served here: reload the page.`;
    else this.connections[0].open(); // with the key, where it was that which came to be asked for
  }
}

async function start() {
  page.composer.onsubmit = (event) => event.preventDefault();
  // The controls of a replay stand on top of the composer.
  new ResizeObserver(() => {
    page.turns.style.setProperty("--foot", `${page.composer.offsetHeight - COMPOSER_FADE}px`);
  }).observe(page.composer);
  try {
    const facts = await modelFacts(page);
    const [schema, examples] = await Promise.all([settingFacts(), exampleFacts()]);
    const shown = new Page(facts, schema, examples.comparison.settings);
    showIntro(page, examples, (question) => shown.send(question), (question) => shown.compare(question));
    page.prompt.focus();
  } catch (error) {
    page.problem.textContent = `This page cannot start: ${error.message}`;
    page.problem.hidden = false;
  }
}

start();
