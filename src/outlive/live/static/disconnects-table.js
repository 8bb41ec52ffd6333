/**
 * Disconnects by route and cause.
 *
 * @import {Cause, Route, State} from "./types.js"
 * @import {Column} from "./sorting.js"
 */

import { element } from "./dom.js";
import { count } from "./numbers.js";
import { inWords } from "./outcomes.js";
import { quantile } from "./quantile.js";
import { SortedTable } from "./sorting.js";
import { spoken } from "./tail-chart.js";

/** @type {readonly Cause[]} */
const CAUSES = ["client_closed", "client_lost", "server_shutdown", "error"];

/** @typedef {Route & {bounds: number[]}} Row */

/** @param {number} number */
const quietly = (number) => element("span", { class: number === 0 ? "zero" : "" }, count(number));

/** @type {Column<Row>[]} */
const COLUMNS = [
  { head: "route", key: ({ route }) => route, cell: ({ route }) => element("code", {}, route) },
  { head: "transport", key: ({ transport }) => transport, cell: ({ transport }) => transport },
  { head: "open now", key: ({ open }) => open, cell: ({ open }) => quietly(open) },
  ...CAUSES.map((cause) => ({
    head: inWords(cause),
    key: (/** @type {Row} */ { disconnects }) => disconnects[cause],
    cell: (/** @type {Row} */ { disconnects }) => quietly(disconnects[cause]),
  })),
  {
    head: "tail p50",
    key: (row) => tailOf(row, 0.5) ?? -1,
    cell: (row) => spoken(tailOf(row, 0.5), row.bounds),
  },
  {
    head: "tail p95",
    key: (row) => tailOf(row, 0.95) ?? -1,
    cell: (row) => spoken(tailOf(row, 0.95), row.bounds),
  },
];

/** @param {Row} row @param {number} share */
const tailOf = ({ bounds, tail }, share) => quantile(bounds, tail, share);

export class DisconnectsTable {
  #table;

  /** @param {Element} table */
  constructor(table) {
    this.#table = new SortedTable(table, COLUMNS, "There has been no connection yet.");
  }

  /** @param {State} state */
  show({ routes, bounds }) {
    this.#table.show(routes.map((route) => ({ ...route, bounds })));
  }
}
