/**
 * The feed: what it tells, that it is broken, and that it is back.
 *
 * @import {Hello, News} from "./types.js"
 *
 * @typedef {object} Listener
 * @property {(hello: Hello) => void} hello the feed is there, with all there is
 * @property {(news: News) => void} news
 * @property {(news: News) => void} ended the process has drained
 * @property {() => void} lost the feed is broken; it is tried again
 */

/** Milliseconds without a message after which the feed is broken, whatever the transport says. */
const PATIENCE = 5000;
/** Milliseconds until it is tried again: the first time, and at the most. */
const RETRY = [250, 4000];

export class Feed {
  #url;
  #listener;
  /** @type {EventSource | null} */
  #source = null;
  /** @type {number | undefined} */
  #timer;
  #retry = RETRY[0];

  /**
   * @param {string} url
   * @param {Listener} listener
   */
  constructor(url, listener) {
    this.#url = url;
    this.#listener = listener;
    // A page that nobody sees costs the server nothing.
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#close() : this.#open()));
    if (!document.hidden) this.#open();
  }

  #open() {
    this.#close();
    this.#source = new EventSource(this.#url);
    this.#on("hello", (told) => {
      this.#retry = RETRY[0];
      this.#listener.hello(/** @type {Hello} */ (told));
    });
    this.#on("state", (told) => this.#listener.news(/** @type {News} */ (told)));
    this.#on("end", (told) => {
      this.#listener.ended(/** @type {News} */ (told));
      this.#again();
    });
    // The browser would try again by itself, but not after every answer, and nobody would be told.
    this.#source.onerror = () => this.#broke();
    this.#watch();
  }

  /**
   * @param {string} name
   * @param {(told: unknown) => void} listener
   */
  #on(name, listener) {
    this.#source?.addEventListener(name, (event) => {
      this.#watch();
      listener(JSON.parse(event.data));
    });
  }

  #watch() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#broke(), PATIENCE);
  }

  #broke() {
    this.#listener.lost();
    this.#again();
  }

  #again() {
    this.#close();
    this.#timer = setTimeout(() => this.#open(), this.#retry);
    this.#retry = Math.min((this.#retry ?? 0) * 2, RETRY[1] ?? 0);
  }

  #close() {
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }
}
