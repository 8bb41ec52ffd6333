/**
 * Which flows to show.
 *
 * @import {Flow} from "./types.js"
 *
 * @typedef {"outcome" | "task" | "route" | "cause"} FilterName
 * @typedef {Record<FilterName, string>} Filter what each must be; "" for anything
 */

import { runsOf } from "./flow.js";

/** @type {readonly FilterName[]} */
export const FILTERS = ["outcome", "task", "route", "cause"];

/**
 * What a flow is, for each filter.
 *
 * @param {Flow} flow
 * @returns {Record<FilterName, string[]>}
 */
function traits(flow) {
  const runs = runsOf(flow);
  return {
    outcome: runs.map((run) => run.outcome),
    task: runs.map((run) => run.task),
    route: [flow.route],
    cause: [flow.cause],
  };
}

/**
 * Whether a flow is among those that the filter wants. An outcome and a task must be those of one and the same run.
 *
 * @param {Flow} flow
 * @param {Filter} filter
 */
export function matches(flow, filter) {
  const run = runsOf(flow).some(
    ({ outcome, task }) =>
      (!filter.outcome || outcome === filter.outcome) && (!filter.task || task === filter.task),
  );
  return (
    (run || !(filter.outcome || filter.task)) &&
    (!filter.route || flow.route === filter.route) &&
    (!filter.cause || flow.cause === filter.cause)
  );
}

/**
 * What there is to choose from, in order.
 *
 * @param {Iterable<Flow>} flows
 * @returns {Record<FilterName, string[]>}
 */
export function choices(flows) {
  /** @type {Record<FilterName, Set<string>>} */
  const found = { outcome: new Set(), task: new Set(), route: new Set(), cause: new Set() };
  for (const flow of flows) {
    const of = traits(flow);
    for (const name of FILTERS) of[name].forEach((word) => found[name].add(word));
  }
  return {
    outcome: [...found.outcome].sort(),
    task: [...found.task].sort(),
    route: [...found.route].sort(),
    cause: [...found.cause].sort(),
  };
}
