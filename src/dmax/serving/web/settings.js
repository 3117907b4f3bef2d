/* How answers are asked for: the form in the drawer, the second decoder in the composer, and what both come to. */

import { el } from "./dom.js";

const STORE = "dmax.settings";

const ABOUT = {
  "soft-parallel": "DMax. Undecided tokens stay a mix of prediction and mask, and may change until their block settles.",
  threshold: "Commits every token above the threshold, at least one a pass. What is committed stays.",
  hierarchical: "Also commits the surest token of every gap, from its lower bar upwards.",
  "fixed-steps": "The same number of tokens in every pass, the surest first.",
  "joint-threshold": "Commits as threshold does, and edits committed tokens the model would now replace.",
};

const FIELDS = [
  { name: "threshold", label: "Threshold", min: 0, max: 1, hint: "Confidence from which a mask becomes a token." },
  { name: "acceptance_threshold", label: "Acceptance threshold", min: 0, max: 1, hint: "Confidence from which a block may settle." },
  { name: "low_threshold", label: "Low threshold", min: 0, max: 1, hint: "Lower bar for the surest token of a gap." },
  { name: "editing_threshold", label: "Editing threshold", min: 0, max: 1, hint: "Confidence from which a token is edited." },
  { name: "block_length", label: "Block length", min: 1, max: 1024, whole: true, hint: "Tokens denoised together." },
  { name: "buffer_size", label: "Blocks in flight", min: 1, max: 16, whole: true, hint: "Above 1, later blocks begin before earlier ones have settled." },
  { name: "max_tokens", label: "Longest answer", min: 1, max: 1e6, whole: true, hint: "In tokens." },
  { name: "temperature", label: "Temperature", min: 0, max: 2, hint: "0 always takes the likeliest token." },
  { name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, whole: true, hint: "The same seed draws the same answer." },
];

/** What is wrong with a number field, in a sentence; empty where nothing is. */
export function problemWith(input, { label, min, max, whole = false }) {
  if (input.value === "" && !input.validity.badInput) return "";
  const value = Number(input.value);
  const isFine = input.value !== "" && value >= min && value <= max && (!whole || Number.isInteger(value));
  if (isFine) return "";
  const kind = whole ? "a whole number" : "a number";
  return max > 1e5 ? `${label} must be ${kind} of at least ${min}.` : `${label} must be ${kind} from ${min} to ${max}.`;
}

class Field {
  constructor(definition, onchange) {
    this.definition = definition;
    const { name, label, whole } = definition;
    this.input = el("input", {
      id: `set-${name}`, type: "number", step: whole ? 1 : "any", min: definition.min, max: definition.max,
      inputMode: whole ? "numeric" : "decimal", "aria-describedby": `hint-${name}`,
      oninput: () => { this.check(); onchange(); },
    });
    this.hint = el("p.hint", { id: `hint-${name}` });
    this.element = el("div.field", {}, el("label", { htmlFor: this.input.id }, label), this.input, this.hint);
    this.check();
  }

  /** Say what is wrong, or else what the field is for. True where nothing is wrong. */
  check() {
    const problem = this.element.hidden ? "" : problemWith(this.input, this.definition);
    this.hint.textContent = problem || this.definition.hint;
    this.hint.classList.toggle("error", Boolean(problem));
    this.input.setAttribute("aria-invalid", String(Boolean(problem)));
    return !problem;
  }
}

export class Settings {
  /**
   * @param page elements by name: fields, compare, second, secondDecoder, secondThreshold
   * @param decoders name and options of each, with their defaults
   * @param facts of the model, from /v1/models
   * @param onchange called after every change
   */
  constructor(page, decoders, facts, onchange) {
    this.page = page;
    this.decoders = new Map(decoders.map(({ name, options }) => [name, options]));
    this.onchange = () => { this.store(); onchange(); };
    this.about = el("p.hint", { id: "hint-decoder" });
    this.decoder = el("select", { id: "set-decoder", onchange: () => this.choose(), "aria-describedby": "hint-decoder" },
      ...this.#options());
    this.fields = FIELDS.map((definition) => new Field(definition, () => this.onchange()));
    const known = {
      block_length: facts.block_length, buffer_size: 1, max_tokens: "the server's choice", temperature: 0, seed: "at random",
    };
    for (const { definition, input } of this.fields) input.placeholder = known[definition.name] ?? "";
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

  /** Show what belongs to the decoders that are chosen. */
  choose() {
    const { page } = this;
    const options = this.decoders.get(this.decoder.value);
    this.about.textContent = ABOUT[this.decoder.value] ?? "Registered by another package.";
    for (const field of this.fields) {
      const { name } = field.definition;
      if (!name.endsWith("threshold")) continue;
      field.element.hidden = !(name in options);
      field.input.placeholder = options[name] ?? "";
      field.check();
    }
    const second = this.decoders.get(page.secondDecoder.value);
    page.second.hidden = !page.compare.checked;
    page.secondThreshold.hidden = !("threshold" in second);
    page.secondThreshold.placeholder = second.threshold ?? "";
    this.onchange();
  }

  /** The first thing that is wrong, with the element to mend it in; null where all is well. */
  problem() {
    const field = this.fields.find((each) => !each.check());
    if (field) return { sentence: field.hint.textContent, input: field.input, inDrawer: true };
    const { compare, secondThreshold: input } = this.page;
    const isAsked = compare.checked && !input.hidden;
    const sentence = isAsked ? problemWith(input, { label: "The second decoder's threshold", min: 0, max: 1 }) : "";
    input.setAttribute("aria-invalid", String(Boolean(sentence)));
    return sentence ? { sentence, input, inDrawer: false } : null;
  }

  /** What to ask the server for, beside the messages: one request, or two to compare. */
  requests() {
    const given = {};
    for (const { element, definition, input } of this.fields) {
      if (!element.hidden && input.value !== "") given[definition.name] = Number(input.value);
    }
    const requests = [{ decoder: this.decoder.value, ...given }];
    if (this.page.compare.checked) {
      // Options of the first decoder are not the second one's.
      const shared = Object.fromEntries(Object.entries(given).filter(([name]) => !name.endsWith("threshold")));
      const { secondDecoder, secondThreshold } = this.page;
      const own = secondThreshold.hidden || secondThreshold.value === "" ? {} : { threshold: Number(secondThreshold.value) };
      requests.push({ decoder: secondDecoder.value, ...shared, ...own });
    }
    return requests;
  }

  /** The first decoder in few words. */
  summary() {
    const threshold = this.fields[0].input.value || this.decoders.get(this.decoder.value).threshold;
    return this.decoder.value + (threshold === undefined ? "" : ` · ${threshold}`);
  }

  reset() {
    this.decoder.selectedIndex = 0;
    for (const field of this.fields) field.input.value = "";
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
