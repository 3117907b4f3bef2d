/* Elements and icons. Text always goes in as text: nothing that a model or a person wrote is ever parsed as markup. */

/** An element: `el("p.note", { id: "x", onclick: f, "aria-label": "…" }, "text", child)`. */
export function el(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  element.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const PATHS = {
  play: '<path d="M5 3.2v9.6l8-4.8z" fill="currentColor" stroke="none"/>',
  pause: '<path d="M5.5 3.5v9M10.5 3.5v9"/>',
  back: '<path d="M10 3.5 5.5 8l4.5 4.5"/>',
  forward: '<path d="M6 3.5 10.5 8 6 12.5"/>',
  map: '<path d="M2.5 2.5h4v4h-4zM9.5 2.5h4v4h-4zM9.5 9.5h4v4h-4z"/><path d="M4 11h1.2v1.2H4z" fill="currentColor"/>',
  save: '<path d="M8 2.5v7.6M4.8 7.2 8 10.4l3.2-3.2M2.8 13.2h10.4"/>',
  copy: '<path d="M5.5 5.5v-3h8v8h-3M2.5 5.5h8v8h-8z"/>',
  edit: '<path d="M3 10.8 10.8 3l2.2 2.2-7.8 7.8-2.7.5z"/>',
  retry: '<path d="M13 8a5 5 0 1 1-1.6-3.7M13.2 2.4v2.7h-2.7"/>',
};

/** A line icon; decoration only, so whatever carries it needs a name of its own. */
export function icon(name) {
  const holder = document.createElement("template");
  holder.innerHTML = `<svg class="icon" viewBox="0 0 16 16" aria-hidden="true">${PATHS[name]}</svg>`;
  return holder.content.firstChild;
}

/** A button with an icon, and its name as text or, where that is only for screen readers, as its label. */
export function iconButton(name, label, onclick, { quiet = false } = {}) {
  const button = el(`button.tool${quiet ? ".square" : ""}`, { type: "button", onclick }, icon(name));
  if (quiet) button.setAttribute("aria-label", label);
  else button.append(el("span", {}, label));
  return button;
}

/** A button that puts a text into the clipboard, and says so for a moment. */
export function copyButton(text) {
  const button = iconButton("copy", "Copy", async () => {
    const copied = await putIntoClipboard(text()).then(() => "Copied", () => "Not copied");
    button.lastChild.textContent = copied;
    setTimeout(() => { button.lastChild.textContent = "Copy"; }, 2000);
  });
  return button;
}

async function putIntoClipboard(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // A page that came over plain HTTP from another machine has no clipboard but this.
  const holder = el("textarea.for-screen-readers", { value: text });
  const held = document.activeElement;
  document.body.append(holder);
  holder.select();
  const isCopied = document.execCommand("copy");
  holder.remove();
  held?.focus();
  if (!isCopied) throw new Error("the browser does not let this page copy.");
}

export const counted = (count, one, several = `${one}s`) => `${count} ${count === 1 ? one : several}`;

export const percent = (share) => `${Math.round(share * 100)} %`;

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
