/**
 * How many runs ended in each interval of the last minutes.
 *
 * @import {ByOutcome, Sample} from "./types.js"
 *
 * @typedef {object} Bin
 * @property {number} from in seconds since the epoch
 * @property {number[]} ended by outcome, in the order of OUTCOMES
 */

import { OUTCOMES } from "./outcomes.js";

/** The runs so far as they were at the start of what is known of each interval and at its end. */
export class History {
  /** @type {Map<number, {first: number[], last: number[]}>} */
  #known = new Map();
  #interval;
  #bins;
  /** @type {number | undefined} */
  #origin;

  /**
   * @param {number} interval in seconds
   * @param {number} span in seconds
   * @param {Sample[]} samples from before, oldest first
   */
  constructor(interval, span, samples) {
    this.#interval = interval;
    this.#bins = Math.round(span / interval);
    for (const [at, ...totals] of samples) this.#note(at, totals);
  }

  /**
   * @param {number} at
   * @param {ByOutcome} outcomes the runs so far
   */
  add(at, outcomes) {
    this.#note(
      at,
      OUTCOMES.map((outcome) => outcomes[outcome]),
    );
  }

  /** @param {number} at @param {number[]} totals */
  #note(at, totals) {
    // The first sample is in the middle of its interval, so that none that comes a little late is in the next.
    this.#origin ??= at - this.#interval / 2;
    const bin = Math.floor((at - this.#origin) / this.#interval);
    this.#known.set(bin, { first: this.#known.get(bin)?.first ?? totals, last: totals });
    for (const old of this.#known.keys()) {
      if (old < bin - this.#bins) this.#known.delete(old);
    }
  }

  /**
   * All intervals up to the latest, oldest first; nothing is known to have ended in those that were not looked at.
   *
   * @returns {Bin[]}
   */
  get bins() {
    const latest = Math.max(...this.#known.keys());
    if (!Number.isFinite(latest)) return [];
    /** @type {Bin[]} */
    const bins = [];
    const origin = this.#origin ?? 0;
    let before = this.#known.get(latest - this.#bins)?.last;
    for (let bin = latest - this.#bins + 1; bin <= latest; bin += 1) {
      const now = this.#known.get(bin);
      bins.push({
        from: origin + bin * this.#interval,
        ended: now ? difference(now.last, before ?? now.first) : OUTCOMES.map(() => 0),
      });
      before = now?.last ?? before;
    }
    return bins;
  }
}

/** @param {number[]} after @param {number[]} before */
const difference = (after, before) =>
  after.map((number, index) => Math.max(0, number - (before[index] ?? 0)));

/**
 * Put neighbouring intervals together, so many at a time.
 *
 * @param {Bin[]} bins
 * @param {number} many
 * @returns {Bin[]}
 */
export function coarser(bins, many) {
  /** @type {Bin[]} */
  const coarse = [];
  for (let index = 0; index < bins.length; index += many) {
    const part = bins.slice(index, index + many);
    const ended = OUTCOMES.map((_, outcome) => part.reduce((sum, bin) => sum + (bin.ended[outcome] ?? 0), 0));
    coarse.push({ from: part[0]?.from ?? 0, ended });
  }
  return coarse;
}
