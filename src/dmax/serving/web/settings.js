/* How answers are asked for: the form in the drawer, the second decoder in the composer, and what both come to. */

import { el } from "./dom.js";

const STORE = "dmax.settings";

const LARGE = 1e5; // a bound that nobody needs to be told

/** What is wrong with a number field, in a sentence; empty where nothing is. */
export function problemWith(input, { label, minimum, maximum, kind }) {
  if (kind !== "number" && kind !== "whole") return "";
  if (input.value === "" && !input.validity.badInput) return "";
  const value = Number(input.value);
  const most = maximum ?? Infinity;
  const isFine = input.value !== "" && value >= (minimum ?? -Infinity) && value <= most
    && (kind === "number" || Number.isSafeInteger(value));
  if (isFine) return "";
  const wanted = kind === "whole" ? "a whole number" : "a number";
  if (minimum === null) return `${label} must be ${wanted}.`;
  return most > LARGE ? `${label} must be ${wanted} of at least ${minimum}.` : `${label} must be ${wanted} from ${minimum} to ${most}.`;
}

/** What a setting's control holds, as JSON has it. */
function valueOf(input, kind) {
  if (kind === "number" || kind === "whole") return Number(input.value);
  if (kind === "text") return input.value;
  try {
    return JSON.parse(input.value);
  } catch {
    return input.value;
  }
}

/** The control of one setting: a number, a switch with a third state for what is not given, or text. */
function control({ name, kind, minimum, maximum }, onchange) {
  const shared = { id: `set-${name}`, "aria-describedby": `hint-${name}`, oninput: onchange };
  if (kind === "switch") {
    const states = [["", ""], ["true", "On"], ["false", "Off"]];
    return el("select", shared, ...states.map(([value, text]) => el("option", { value }, text)));
  }
  if (kind !== "number" && kind !== "whole") return el("input", { ...shared, type: "text" });
  const bounds = { ...(minimum === null ? {} : { min: minimum }), ...(maximum === null ? {} : { max: maximum }) };
  const whole = kind === "whole";
  return el("input", { ...shared, ...bounds, type: "number", step: whole ? 1 : "any", inputMode: whole ? "numeric" : "decimal" });
}

class Field {
  constructor(definition, onchange) {
    this.input = control(definition, () => { this.check(); onchange(); });
    this.label = el("label", { htmlFor: this.input.id });
    this.hint = el("p.hint", { id: `hint-${definition.name}` });
    this.element = el("div.field", {}, this.label, this.input, this.hint);
    this.show(definition);
  }

  /** Show the setting as the chosen decoder has it; null where it has none. */
  show(definition) {
    this.element.hidden = !definition;
    if (definition) {
      this.definition = definition;
      this.label.textContent = definition.label;
      const known = definition.default ?? "";
      if (definition.kind === "switch") this.input.options[0].text = `${known ? "On" : "Off"}, as the decoder has it`;
      else this.input.placeholder = known;
    }
    this.check();
  }

  get isGiven() {
    return !this.element.hidden && this.input.value !== "";
  }

  /** Say what is wrong, or else what the field is for. True where nothing is wrong. */
  check() {
    const problem = this.element.hidden ? "" : problemWith(this.input, this.definition);
    this.hint.textContent = problem || this.definition.help;
    this.hint.classList.toggle("error", Boolean(problem));
    this.input.setAttribute("aria-invalid", String(Boolean(problem)));
    return !problem;
  }
}

export class Settings {
  /**
   * @param page elements by name: fields, compare, second, secondDecoder, secondThreshold
   * @param schema settings that all decoders share, and each decoder with its options
   * @param facts of the model, from /v1/models
   * @param pair two decoders, each with options that take the place of its defaults while the two are compared
   * @param onchange called after every change
   */
  constructor(page, schema, facts, pair, onchange) {
    this.page = page;
    this.pair = pair;
    this.decoders = new Map(schema.decoders.map((decoder) => [decoder.name, decoder]));
    this.onchange = () => { this.store(); onchange(); };
    this.about = el("p.hint", { id: "hint-decoder" });
    this.decoder = el("select", { id: "set-decoder", onchange: () => this.choose(), "aria-describedby": "hint-decoder" },
      ...this.#options());
    const known = {
      block_length: { default: facts.block_length },
      seed: { default: "at random" },
      max_tokens: {
        default: `${facts.default_gen_length}, or what room is left`,
        help: `Most tokens of the answer. With all that was asked and answered before, up to ${facts.max_model_len}.`,
      },
    };
    const shared = schema.shared.map((definition) => ({ ...definition, ...known[definition.name] }));
    const own = new Map();
    for (const option of schema.decoders.flatMap(({ options }) => options)) if (!own.has(option.name)) own.set(option.name, option);
    this.own = [...own.values()].map((definition) => new Field(definition, () => this.onchange()));
    this.fields = [...this.own, ...shared.map((definition) => new Field(definition, () => this.onchange()))];
    page.fields.append(
      el("div.field", {}, el("label", { htmlFor: "set-decoder" }, "Decoder"), this.decoder, this.about),
      ...this.fields.map((field) => field.element));
    page.secondDecoder.append(...this.#options());
    page.secondDecoder.onchange = () => this.choose();
    page.compare.onchange = () => this.choose();
    page.secondThreshold.oninput = () => this.onchange();
    this.restore();
  }

  #options() {
    return [...this.decoders.keys()].map((name) => el("option", { value: name }, name));
  }

  /** What the pair has for a decoder, while the two are compared; nothing where another one is chosen. */
  #preset(index) {
    const { decoder, ...options } = this.pair[index];
    const chosen = [this.decoder, this.page.secondDecoder][index].value;
    return this.page.compare.checked && decoder === chosen ? options : {};
  }

  /** An option of the first or the second decoder, with its present default. */
  #option(index, name) {
    const decoder = [this.decoder, this.page.secondDecoder][index].value;
    const option = this.decoders.get(decoder).options.find((each) => each.name === name);
    return option && { ...option, default: this.#preset(index)[name] ?? option.default };
  }

  /** Show what belongs to the decoders that are chosen. */
  choose() {
    const { page } = this;
    this.about.textContent = this.decoders.get(this.decoder.value).about || "Registered by another package.";
    for (const field of this.own) field.show(this.#option(0, field.definition.name));
    const second = this.#option(1, "threshold");
    page.second.hidden = !page.compare.checked;
    page.secondThreshold.hidden = !second;
    page.secondThreshold.placeholder = second?.default ?? "";
    this.onchange();
  }

  /** The first thing that is wrong, with the element to mend it in; null where all is well. */
  problem() {
    const field = this.fields.find((each) => !each.check());
    if (field) return { sentence: field.hint.textContent, input: field.input, inDrawer: true };
    const { compare, secondThreshold: input } = this.page;
    const isAsked = compare.checked && !input.hidden;
    const range = { label: "The second decoder's threshold", kind: "number", minimum: 0, maximum: 1 };
    const sentence = isAsked ? problemWith(input, range) : "";
    input.setAttribute("aria-invalid", String(Boolean(sentence)));
    return sentence ? { sentence, input, inDrawer: false } : null;
  }

  /** What to ask the server for, beside the messages: one request, or two to compare. */
  requests() {
    const [shared, own] = [{}, {}];
    for (const field of this.fields) {
      if (!field.isGiven) continue;
      const { name, kind, further } = field.definition;
      const place = !this.own.includes(field) ? shared : further ? (own.decoder_options ??= {}) : own;
      place[name] = valueOf(field.input, kind);
    }
    const requests = [{ decoder: this.decoder.value, ...shared, ...this.#preset(0), ...own }];
    if (this.page.compare.checked) {
      // Options of the first decoder are not the second one's.
      const { secondDecoder, secondThreshold } = this.page;
      const threshold = secondThreshold.hidden || secondThreshold.value === "" ? {} : { threshold: Number(secondThreshold.value) };
      requests.push({ decoder: secondDecoder.value, ...shared, ...this.#preset(1), ...threshold });
    }
    return requests;
  }

  /** The first decoder in few words. */
  summary() {
    const option = this.#option(0, "threshold");
    if (!option) return this.decoder.value;
    const { value } = this.own.find((field) => field.definition.name === "threshold").input;
    return `${this.decoder.value} · ${value || option.default}`;
  }

  reset() {
    this.decoder.selectedIndex = 0;
    for (const field of this.fields) field.input.value = "";
    this.choose();
  }

  /** Compare the pair, each with its own options. */
  choosePair() {
    const { compare, secondDecoder, secondThreshold } = this.page;
    compare.checked = true;
    [this.decoder.value, secondDecoder.value] = this.pair.map(({ decoder }) => decoder);
    for (const input of [...this.own.map((field) => field.input), secondThreshold]) input.value = "";
    this.choose();
  }

  store() {
    const { compare, secondDecoder, secondThreshold } = this.page;
    const values = Object.fromEntries(this.fields.map(({ definition, input }) => [definition.name, input.value]));
    Object.assign(values, { decoder: this.decoder.value, compare: compare.checked });
    Object.assign(values, { secondDecoder: secondDecoder.value, secondThreshold: secondThreshold.value });
    try {
      localStorage.setItem(STORE, JSON.stringify(values));
    } catch { /* a browser may keep nothing; then the settings last as long as the page */ }
  }

  restore() {
    let values = {};
    try {
      values = JSON.parse(localStorage.getItem(STORE)) ?? {};
    } catch { /* as above, or something else was stored */ }
    const { compare, secondDecoder, secondThreshold } = this.page;
    if (this.decoders.has(values.decoder)) this.decoder.value = values.decoder;
    secondDecoder.value = this.decoders.has(values.secondDecoder) ? values.secondDecoder : "threshold";
    secondThreshold.value = values.secondThreshold ?? "";
    compare.checked = values.compare === true;
    for (const { definition, input } of this.fields) input.value = values[definition.name] ?? "";
    this.choose();
  }
}
