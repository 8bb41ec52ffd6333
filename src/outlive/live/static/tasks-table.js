/**
 * Every task: what runs, how long it takes, how much of its timeout that is, and how its runs ended.
 *
 * @import {Outcome, State, Task} from "./types.js"
 * @import {Column} from "./sorting.js"
 */

import { drawing, element } from "./dom.js";
import { count, duration, percent } from "./numbers.js";
import { OUTCOMES, inWords } from "./outcomes.js";
import { quantile } from "./quantile.js";
import { SortedTable } from "./sorting.js";
import { spoken } from "./tail-chart.js";

/**
 * @typedef {object} Row
 * @property {Task} task
 * @property {number[]} bounds
 * @property {number | null} p50
 * @property {number | null} p95
 * @property {number | null} used p95 as a share of the timeout
 */

/**
 * @param {Task} task
 * @param {number[]} bounds
 * @returns {Row}
 */
export function rowOf(task, bounds) {
  const [p50, p95] = [quantile(bounds, task.durations, 0.5), quantile(bounds, task.durations, 0.95)];
  // No run takes longer, but an estimate within a bucket may.
  return { task, bounds, p50, p95, used: p95 === null ? null : Math.min(1, p95 / task.timeout) };
}

/** @param {number} number */
const quietly = (number) => element("span", { class: number === 0 ? "zero" : "" }, count(number));

/** @param {Outcome} outcome @returns {Column<Row>} */
const outcomeColumn = (outcome) => ({
  head: inWords(outcome),
  key: ({ task }) => task.outcomes[outcome],
  cell: ({ task }) => quietly(task.outcomes[outcome]),
});

/** @type {Column<Row>[]} */
const COLUMNS = [
  { head: "task", key: ({ task }) => task.name, cell: ({ task }) => element("code", {}, task.name) },
  { head: "running", key: ({ task }) => task.running, cell: ({ task }) => quietly(task.running) },
  { head: "p50", key: ({ p50 }) => p50 ?? -1, cell: ({ p50, bounds }) => spoken(p50, bounds) },
  { head: "p95", key: ({ p95 }) => p95 ?? -1, cell: ({ p95, bounds }) => spoken(p95, bounds) },
  { head: "timeout", key: ({ task }) => task.timeout, cell: ({ task }) => duration(task.timeout) },
  { head: "timeout used", key: ({ used }) => used ?? -1, cell: ({ used }) => usedCell(used) },
  ...OUTCOMES.map(outcomeColumn),
  { head: "absorbed", key: ({ task }) => task.absorbed, cell: ({ task }) => quietly(task.absorbed) },
];

/** @param {number | null} used */
function usedCell(used) {
  const meter = drawing(
    "svg",
    { class: used === 1 ? "meter bad" : "meter", "aria-hidden": "true" },
    drawing("rect", { width: "100%", height: "100%", rx: 2 }),
    drawing("rect", { width: `${100 * Math.min(1, used ?? 0)}%`, height: "100%", rx: 2 }),
  );
  return element("span", { class: "used" }, meter, element("span", {}, percent(used)));
}

export class TasksTable {
  #table;

  /** @param {Element} table */
  constructor(table) {
    this.#table = new SortedTable(table, COLUMNS, "No task is declared.");
  }

  /** @param {State} state */
  show({ tasks, bounds }) {
    this.#table.show(tasks.map((task) => rowOf(task, bounds)));
  }
}
