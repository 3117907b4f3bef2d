/* The empty page: a headline that decodes itself, examples to ask, and what the tiles mean. */

import { el, reducedMotion } from "./dom.js";
import { Tiles } from "./tiles.js";

const MOST_EXAMPLES = 2; // beside the comparison

// One line a pass; "_" is a mask, and a word that changes is taken back.
const HEADLINE = [
  "_ _ _ _ _ _",
  "Watch _ _ _ _ _",
  "Watch an answer _ _ _",
  "Watch an answer come _ _",
  "Watch an answer come into place.",
  "Watch an answer come into focus.",
].map((line) => line.split(" "));
const SECONDS_A_PASS = 0.55;

/**
 * Fill the section and let the headline run.
 *
 * @param page elements by name: examples, legend, headline
 * @param facts questions, and what to compare
 * @param onask called with a question that was chosen
 * @param oncompare called with a question that was chosen to be asked of both decoders
 */
export function showIntro(page, { questions, comparison }, onask, oncompare) {
  const offered = questions.filter((entry) => entry.page && !entry.known_wrong).slice(0, MOST_EXAMPLES);
  const pair = comparison.settings.map(({ decoder, threshold }) => `${decoder} ${threshold}`).join(" beside ");
  page.examples.append(
    ...offered.map(({ question }) => example("Ask", question, onask)), example("Compare", comparison.question, oncompare, pair));
  const legend = [["not decided", {}], ["may still change", { text: "apples", confidence: 0.6 }],
    ["was taken back", { text: "pears", confidence: 0.8, wasRevised: true }], ["settled", { text: "apples", settled: true }]];
  page.legend.append(...legend.map(([meaning, cell]) => {
    const tiles = new Tiles();
    tiles.draw([cellOf(cell)]);
    return el("div", {}, tiles.element, el("span", {}, meaning));
  }));
  const headline = new Tiles();
  page.headline.replaceChildren(headline.element);
  let pass = reducedMotion() ? HEADLINE.length : 0;
  const next = () => {
    headline.draw(headlineCells(Math.min(pass, HEADLINE.length - 1), pass >= HEADLINE.length));
    page.headline.style.minHeight = `${page.headline.offsetHeight}px`; // tiles are wider than text and may take a line more
    if (pass++ < HEADLINE.length) setTimeout(next, SECONDS_A_PASS * 1000);
  };
  next();
}

function example(action, question, onchoose, detail = null) {
  const text = el("span", { dir: "auto" }, question, detail && el("small", {}, detail));
  return el("li", {}, el("button", { type: "button", onclick: () => onchoose(question) }, text, el("b", {}, action)));
}

function headlineCells(pass, settled) {
  return HEADLINE[pass].map((word, index) => {
    const before = pass ? HEADLINE[pass - 1][index] : "_";
    const wasRevised = !settled && HEADLINE.slice(0, pass).some((line) => line[index] !== "_" && line[index] !== word);
    const changed = !settled && word !== before;
    return cellOf({
      text: (index ? " " : "") + word, masked: word === "_", settled,
      promoted: changed && before === "_", revised: changed && before !== "_", wasRevised,
      confidence: Math.min(0.35 + 0.15 * (pass - index / 2), 0.97),
    });
  });
}

function cellOf(values) {
  return {
    text: "", masked: !values.text, settled: false, promoted: false, revised: false, wasRevised: false,
    confidence: 1, place: "answer", ...values,
  };
}
