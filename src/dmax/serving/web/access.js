/* What the server tells about itself, and the key that it may ask for. */

const STORE = "dmax.key";

const stored = () => {
  try {
    return sessionStorage.getItem(STORE) ?? "";
  } catch {
    return "";
  }
};

let key = stored();

/** Keep a key for this tab. */
function keep(value) {
  key = value;
  try {
    sessionStorage.setItem(STORE, value);
  } catch { /* then it lasts as long as the page */ }
}

/** Let a person type a key into the dialog; `refused` is the server's sentence about the last one. */
function askForKey(page, refused) {
  page.keyNote.classList.toggle("error", Boolean(refused));
  if (refused) page.keyNote.textContent = refused;
  page.keyDialog.oncancel = (event) => event.preventDefault();
  if (!page.keyDialog.open) page.keyDialog.showModal();
  return new Promise((resolve) => {
    page.keyForm.onsubmit = (event) => {
      event.preventDefault();
      if (!page.key.value.trim()) return;
      keep(page.key.value.trim());
      page.keyDialog.close();
      resolve();
    };
  });
}

/** The model served; asks for a key as often as the server wants one. */
export async function modelFacts(page) {
  for (let isRepeated = false; ; isRepeated = true) {
    const reply = await reached("v1/models", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
    const body = await reply.json().catch(() => ({})); // a proxy may answer in its own way
    if (reply.ok && body.data) return body.data[0];
    if (reply.status !== 401) throw new Error(body.error?.message ?? `the server does not tell its model (status ${reply.status}).`);
    await askForKey(page, isRepeated || key ? "That key was not accepted; give another one." : "");
  }
}

/** What can be set, for all decoders and for each, as the server has it. */
export const settingFacts = async () => told(await reached("web/settings.json"), "its settings");

/** Questions to offer, and a pair of settings that are worth comparing. */
export const exampleFacts = async () => told(await reached("web/examples.json"), "its examples");

/** As fetch; where nobody answers, the error says so in a sentence. */
function reached(address, options) {
  return fetch(address, options).catch(() => { throw new Error("the server cannot be reached; reload the page once it can."); });
}

function told(reply, what) {
  if (!reply.ok) throw new Error(`the server does not tell ${what} (status ${reply.status}).`);
  return reply.json();
}

/** Where passes come from. A browser cannot send headers with a WebSocket, so the key goes into the address. */
export function traceAddress() {
  const address = new URL("v1/trace", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  if (key) address.searchParams.set("api_key", key);
  return address.href;
}
