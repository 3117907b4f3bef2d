/* The connection to the server: one request at a time, every pass of its answer as a message back. */

const FIRST_PAUSE = 500; // milliseconds; doubled after every attempt to reach the server again
const LONGEST_PAUSE = 15_000;

/** The server read the request and said no; the message is its own sentence. */
export class Refusal extends Error {
  constructor({ message, code, type }) {
    super(message);
    this.code = code;
    this.isAboutTheRequest = type === "invalid_request_error";
  }
}

/** The connection broke, or there is none. */
export class Lost extends Error {}

export class Connection {
  /**
   * @param address gives the URL to connect to
   * @param onstate called with "connecting", "open", "lost" or "refused" (the key); without it, a connection that
   *   broke is made again only for the next request
   */
  constructor(address, onstate = null) {
    this.address = address;
    this.onstate = onstate;
    this.pause = FIRST_PAUSE;
    this.#forget();
  }

  /** A socket that is open; rejects with Lost. */
  open() {
    if (this.opening) return this.opening;
    clearTimeout(this.timer);
    this.onstate?.("connecting");
    this.opening = new Promise((resolve, reject) => {
      const socket = new WebSocket(this.address());
      this.socket = socket;
      socket.onopen = () => { this.pause = FIRST_PAUSE; this.onstate?.("open"); resolve(socket); };
      socket.onmessage = (event) => this.#hear(JSON.parse(event.data));
      socket.onclose = () => {
        reject(new Lost("The server cannot be reached."));
        if (socket === this.socket) this.#lose();
      };
    });
    this.opening.catch(() => {});
    return this.opening;
  }

  /**
   * Send a request; resolves with the last message of its answer.
   *
   * Rejects with a Refusal, or with Lost, also where close() was called meanwhile.
   */
  async ask(request, onmessage) {
    const socket = await this.open();
    return new Promise((resolve, reject) => {
      this.asked = { onmessage, resolve, reject };
      socket.send(JSON.stringify(request));
    });
  }

  /** Hang up: the server gives up what it was doing for us. */
  close() {
    const { socket, asked } = this;
    this.#forget();
    socket?.close();
    asked?.reject(new Lost("The connection was closed."));
  }

  #hear(message) {
    const { asked } = this;
    if (message.error) {
      this.asked = null;
      asked?.reject(new Refusal(message.error));
      if (message.error.code === "invalid_api_key") this.isRefused = true;
    } else if (message.type === "end") {
      this.asked = null;
      asked?.resolve(message);
    } else {
      asked?.onmessage(message);
    }
  }

  #lose() {
    const { asked, isRefused } = this;
    this.#forget();
    asked?.reject(new Lost("The connection broke before the answer was whole."));
    if (!this.onstate) return;
    this.onstate(isRefused ? "refused" : "lost");
    if (isRefused) return;
    this.timer = setTimeout(() => this.open(), this.pause);
    this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
  }

  #forget() {
    clearTimeout(this.timer);
    this.socket = this.opening = this.asked = null;
    this.isRefused = false;
  }
}
