/* The turns of a conversation: what was asked, what came back, and what of it is sent along with the next question. */

import { counted, el, iconButton } from "./dom.js";
import { saveReplay } from "./export.js";
import { isEmpty, NO_TEXT, Replay } from "./replay.js";
import { Lost, Refusal } from "./socket.js";
import { addRecord, passCount } from "./trace.js";

export class Turn {
  /**
   * @param prompt the question
   * @param earlier messages of the turns before
   * @param requests what is asked beside the messages; one for each decoder
   * @param facts of the model
   */
  constructor(prompt, earlier, requests, facts) {
    this.prompt = prompt;
    this.messages = [...earlier, { role: "user", content: prompt }];
    this.requests = requests;
    this.runs = requests.map((request) => newRun(prompt, request, facts));
    this.stopped = false;
    const save = iconButton("save", "Export", () => this.#save());
    this.replay = new Replay(this.runs, [save]);
    this.element = el("article.turn", {}, el("h2.prompt", { dir: "auto" }, prompt), this.replay.element);
  }

  /**
   * Ask over one connection for each decoder, and draw until all answers are there.
   *
   * @returns the first error that was no stop, or null
   */
  async run(connections, onframe) {
    const heading = this.element.firstChild;
    if (heading.scrollHeight > heading.clientHeight) heading.tabIndex = 0; // or it could not be scrolled by keyboard
    const drawn = this.replay.follow(onframe);
    const errors = await Promise.all(this.runs.map((run, index) => this.#ask(run, index, connections[index])));
    await drawn;
    this.replay.finish({ mapOpen: true });
    if (this.messages.length > 1) errors.forEach((error, index) => this.#blameEarlierTurns(error, index));
    return errors.find((error) => error !== null) ?? null;
  }

  /** Say where the turns before may be why a decoder gave no answer. */
  #blameEarlierTurns(error, index) {
    if (error?.code === "context_length_exceeded") {
      this.replay.say(index, `${error.message} The turns above count, too: a new conversation begins without them.`, true);
    } else if (!error && !this.stopped && isEmpty(this.runs[index])) {
      this.replay.say(index, "The turns above were sent along, and not every model can use them: a new conversation begins without them.");
    }
  }

  async #ask(run, index, connection) {
    const started = performance.now();
    try {
      const { type, ...output } = await connection.ask({ messages: this.messages, ...this.requests[index] }, (message) => {
        if (message.type === "pass") {
          addRecord(run, message);
          run.clock[message.pass_number - 1] = (performance.now() - started) / 1000;
        } else {
          const { type: _, prompt_pieces: __, ...start } = message;
          Object.assign(run, start);
        }
      });
      Object.assign(run, output);
      return null;
    } catch (error) {
      run.ended = this.stopped ? "stopped" : "failed";
      if (this.stopped) this.replay.say(index, `Stopped after ${passCount(run)} passes.`);
      else this.replay.say(index, error.message, true);
      if (this.stopped) return null;
      if (!(error instanceof Lost || error instanceof Refusal)) throw error;
      return error;
    }
  }

  /** To be called before the connections are closed. */
  stop() {
    this.stopped = true;
    this.replay.catchUp();
  }

  /** Question and answer for the next request; nothing where there is no whole answer to read. */
  get exchange() {
    const [run] = this.runs;
    if (isEmpty(run)) return [];
    return [{ role: "user", content: this.prompt }, { role: "assistant", content: run.text }];
  }

  /** Whether there is a whole answer to read, from any of the decoders. */
  get hasAnswer() {
    return !this.runs.every(isEmpty);
  }

  /** What a screen reader is to hear while the answer is being decoded: how far the picture of it has come. */
  get progress() {
    const parts = this.replay.reached.map(({ passes, tokens }, index) => {
      const reached = passes ? `Pass ${passes}, ${counted(tokens, "token")} so far.` : "Waiting for the first pass.";
      return `${this.#from(this.runs[index])}${reached}`;
    });
    return parts.join(" ");
  }

  /** What a screen reader is to hear once the turn is over. */
  get announcement() {
    const parts = this.runs.filter((run) => typeof run.text === "string").map((run) =>
      `${this.#from(run)}${isEmpty(run) ? NO_TEXT : run.text} ${counted(run.num_tokens, "token")} in ${counted(run.passes, "pass", "passes")}.`);
    return parts.join(" ") || (this.stopped ? "Stopped." : "");
  }

  /** Whose answer it is, where there are several. */
  #from(run) {
    return this.runs.length > 1 ? `${run.decoder}: ` : "";
  }

  /** Offer a way out below the turn, and bring it and what is said above it into view. */
  offer(icon, label, onchoose) {
    const button = iconButton(icon, label, onchoose);
    button.classList.add("again");
    this.element.append(button);
    button.scrollIntoView({ block: "nearest" });
  }

  async #save() {
    try {
      await saveReplay(this.runs);
    } catch (error) {
      this.replay.say(0, `The replay cannot be exported: ${error.message}`, true);
    }
  }
}

function newRun(prompt, request, facts) {
  const { decoder, ...params } = request;
  return { model: facts.id, prompt, decoder, params, block_length: facts.block_length, pieces: {}, trace: [], clock: [] };
}
