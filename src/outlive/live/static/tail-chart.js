/**
 * The tail's distribution: a column for each bucket of the histogram.
 *
 * @import {State} from "./types.js"
 */

import { drawing, element } from "./dom.js";
import { count, duration } from "./numbers.js";
import { quantile, sum } from "./quantile.js";

const SHARES = /** @type {const} */ ([
  ["p50", 0.5],
  ["p95", 0.95],
  ["p99", 0.99],
]);

export class TailChart {
  #numbers = element("dl", { class: "quantiles" });
  #columns = element("div", { class: "columns" });
  #silence = element("p", { class: "silence" }, "No disconnect flow has ended yet.");
  #rows = element("tbody");

  /** @param {Element} place */
  constructor(place) {
    place.append(
      this.#numbers,
      this.#columns,
      this.#silence,
      element(
        "details",
        {},
        element("summary", {}, "as a table"),
        element(
          "table",
          {},
          element("caption", { class: "unseen" }, "Disconnect flows by the length of their tail"),
          element(
            "thead",
            {},
            element(
              "tr",
              {},
              element("th", { scope: "col" }, "up to"),
              element("th", { scope: "col" }, "flows"),
            ),
          ),
          this.#rows,
        ),
      ),
    );
    this.#columns.setAttribute("role", "img");
  }

  /** @param {State} state */
  show({ bounds, routes }) {
    const counts = sum(routes.map((route) => route.tail));
    const quantiles = SHARES.map(
      ([name, share]) => /** @type {const} */ ([name, spoken(quantile(bounds, counts, share), bounds)]),
    );
    this.#numbers.replaceChildren(
      ...quantiles.map(([name, value]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, value)),
      ),
    );
    const flows = counts.reduce((all, each) => all + each, 0);
    const told = quantiles.map(([name, value]) => `${name} ${value}`).join(", ");
    this.#columns.setAttribute("aria-label", `Tail of ${count(flows)} disconnect flows: ${told}`);
    this.#columns.hidden = flows === 0;
    this.#silence.hidden = flows > 0;
    const highest = Math.max(1, ...counts);
    this.#columns.replaceChildren(
      ...counts.map((each, index) =>
        element(
          "div",
          {},
          drawing(
            "svg",
            {},
            drawing("rect", { class: "track", width: "100%", height: "100%", rx: 3 }),
            drawing("rect", {
              class: "column",
              y: `${100 - (100 * each) / highest}%`,
              width: "100%",
              height: `${(100 * each) / highest}%`,
              rx: 3,
            }),
          ),
          element("span", {}, short(bounds[index])),
        ),
      ),
    );
    this.#rows.replaceChildren(
      ...counts.map((each, index) => {
        const bound = bounds[index];
        const name = bound === undefined ? "more" : duration(bound);
        return element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, count(each)));
      }),
    );
  }
}

/**
 * A quantile in words.
 *
 * @param {number | null} seconds
 * @param {number[]} bounds
 */
export const spoken = (seconds, bounds) =>
  seconds === Infinity ? `> ${duration(bounds.at(-1) ?? 0)}` : duration(seconds);

/** @param {number | undefined} bound */
function short(bound) {
  if (bound === undefined) return "more";
  return bound < 1 ? `${Number((bound * 1000).toFixed(1))}ms` : `${bound}s`;
}
