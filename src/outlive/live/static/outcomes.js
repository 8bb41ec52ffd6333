/**
 * The five outcomes: their order, names and signs. Colours and patterns go by the same names, in style.css and index.html.
 *
 * @import {Outcome, ByOutcome} from "./types.js"
 */

import { drawing, element } from "./dom.js";

/** @type {readonly Outcome[]} */
export const OUTCOMES = ["completed", "timed_out", "cancelled", "failed", "rejected"];

/** What counts against the objective: a cancelled run is what the program or its user asked for. */
const BAD = /** @type {const} */ (["timed_out", "failed", "rejected"]);

/** @param {unknown} word @returns {word is Outcome} */
export const isOutcome = (word) => OUTCOMES.some((outcome) => outcome === word);

/** @param {string} word of the server's, such as "timed_out" or "client_lost" */
export const inWords = (word) => word.replaceAll("_", " ");

/** @param {ByOutcome} counts */
export const total = (counts) => OUTCOMES.reduce((sum, outcome) => sum + counts[outcome], 0);

/**
 * The share of runs that did not end badly.
 *
 * @param {ByOutcome} counts
 * @returns {number | null} null where no run has ended
 */
export function availability(counts) {
  const all = total(counts);
  const bad = BAD.reduce((sum, outcome) => sum + counts[outcome], 0);
  return all === 0 ? null : 1 - bad / all;
}

/** @param {Outcome} outcome */
export const patternOf = (outcome) => `url(#pattern-${outcome})`;

/**
 * An outcome's sign: a square of its colour with its mark.
 *
 * @param {Outcome} outcome
 */
export function sign(outcome) {
  return drawing(
    "svg",
    { class: `sign ${outcome}`, viewBox: "0 0 16 16", "aria-hidden": "true" },
    drawing("rect", { width: 16, height: 16, rx: 4 }),
    drawing("use", { href: `#mark-${outcome}` }),
  );
}

/**
 * An outcome in a word, with its sign.
 *
 * @param {Outcome} outcome
 */
export const labelled = (outcome) => element("span", { class: "outcome" }, sign(outcome), inWords(outcome));
