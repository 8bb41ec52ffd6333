/**
 * A table's rows in the order that the reader chose by its heads.
 *
 * @template Row
 * @typedef {object} Column
 * @property {string} head
 * @property {(row: Row) => number | string} key what to sort by
 * @property {(row: Row) => import("./dom.js").Child} cell
 */

import { element } from "./dom.js";

/**
 * @param {number | string} one
 * @param {number | string} other
 */
export const compare = (one, other) =>
  typeof one === "string" || typeof other === "string"
    ? String(one).localeCompare(String(other))
    : one - other;

/**
 * The rows in order; those that are equal keep theirs.
 *
 * @template Row
 * @param {Row[]} rows
 * @param {(row: Row) => number | string} key
 * @param {boolean} descending
 */
export function sorted(rows, key, descending) {
  const sign = descending ? -1 : 1;
  return rows.toSorted((one, other) => sign * compare(key(one), key(other)));
}

/** @template Row */
export class SortedTable {
  #columns;
  #heads;
  #body = element("tbody");
  /** @type {Row[]} */
  #rows = [];
  #by = 0;
  #descending = false;
  #nothing;

  /**
   * @param {Element} table
   * @param {Column<Row>[]} columns the first one names the row
   * @param {string} nothing said instead of no rows
   */
  constructor(table, columns, nothing) {
    this.#columns = columns;
    this.#nothing = nothing;
    this.#heads = columns.map(({ head }, index) => {
      const button = element("button", { type: "button" }, head);
      button.addEventListener("click", () => this.#sort(index));
      return element("th", { scope: "col" }, button);
    });
    table.append(element("thead", {}, element("tr", {}, ...this.#heads)), this.#body);
    this.#mark();
  }

  /** @param {Row[]} rows */
  show(rows) {
    this.#rows = rows;
    const column = this.#columns[this.#by];
    const ordered = column ? sorted(rows, column.key, this.#descending) : rows;
    this.#body.replaceChildren(...ordered.map((row) => this.#row(row)));
    if (rows.length === 0) {
      this.#body.append(
        element("tr", {}, element("td", { class: "nothing", colspan: this.#columns.length }, this.#nothing)),
      );
    }
  }

  /** @param {Row} row */
  #row(row) {
    const [name, ...others] = this.#columns;
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, name ? name.cell(row) : null),
      ...others.map((column) => element("td", {}, column.cell(row))),
    );
  }

  /** @param {number} index */
  #sort(index) {
    // Numbers are asked for with the largest first, names in their order.
    const first = index > 0;
    this.#descending = this.#by === index ? !this.#descending : first;
    this.#by = index;
    this.#mark();
    this.show(this.#rows);
  }

  #mark() {
    this.#heads.forEach((head, index) => {
      head.setAttribute(
        "aria-sort",
        index !== this.#by ? "none" : this.#descending ? "descending" : "ascending",
      );
    });
  }
}
