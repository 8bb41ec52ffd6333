/**
 * The flows that this page has heard of, newest first: more than the server keeps, and not without end.
 *
 * @import {Flow} from "./types.js"
 */

/** So many flows of each kind, those that went well and those that didn't, so that many good ones hide no bad one. */
export const MOST = 500;

export class FlowStore {
  /** @type {Map<string, Flow>} */
  #flows = new Map();

  /** @param {Flow[]} flows newest first, as the server tells them */
  add(flows) {
    for (const flow of flows.toReversed()) {
      if (!this.#flows.has(flow.trace_id)) this.#flows.set(flow.trace_id, flow);
    }
    this.#forget(true);
    this.#forget(false);
  }

  /** @param {boolean} bad */
  #forget(bad) {
    const kind = [...this.#flows.values()].filter((flow) => isBad(flow) === bad);
    for (const flow of kind.slice(0, Math.max(0, kind.length - MOST))) this.#flows.delete(flow.trace_id);
  }

  /** Newest first. */
  get all() {
    return [...this.#flows.values()].reverse();
  }

  /** @param {string} trace */
  find(trace) {
    return this.#flows.get(trace);
  }
}

/** @param {Flow} flow */
const isBad = (flow) => flow.spans.some((span) => span.error);
