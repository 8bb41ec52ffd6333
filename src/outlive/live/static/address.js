/**
 * What is looked at, in the address: the filters and the open flow. So a flow can be linked to.
 *
 * @import {Filter} from "./filters.js"
 *
 * @typedef {object} Place
 * @property {Filter} filter
 * @property {string} flow the trace id of the open flow, or ""
 */

import { FILTERS } from "./filters.js";

/**
 * @param {string} hash such as "#flow=4bf9&outcome=failed"
 * @returns {Place}
 */
export function placeOf(hash) {
  const words = new URLSearchParams(hash.slice(1));
  const entries = FILTERS.map((name) => [name, words.get(name) ?? ""]);
  return { filter: Object.fromEntries(entries), flow: words.get("flow") ?? "" };
}

/**
 * @param {Place} place
 * @returns {string} "#" where nothing is chosen
 */
export function hashOf({ filter, flow }) {
  const words = new URLSearchParams();
  if (flow) words.set("flow", flow);
  for (const name of FILTERS) {
    if (filter[name]) words.set(name, filter[name]);
  }
  return `#${words}`;
}
