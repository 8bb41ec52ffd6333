/**
 * Runs by outcome over the last minutes, as a stack of bars, and as a table for whom a picture says nothing.
 *
 * @import {Bin} from "./history.js"
 */

import { drawing, element } from "./dom.js";
import { coarser } from "./history.js";
import { clock, count } from "./numbers.js";
import { OUTCOMES, inWords, labelled, patternOf } from "./outcomes.js";

/** Bars of the picture in a row of the table: half a minute. */
const ROW = 6;

export class OutcomesChart {
  #legend = element("ul", { class: "legend" });
  #picture = drawing("svg", { class: "chart", role: "img" });
  #axis = element("p", { class: "axis", "aria-hidden": "true" });
  #rows = element("tbody");

  /** @param {Element} place */
  constructor(place) {
    const heads = ["from", ...OUTCOMES.map(inWords)].map((head) => element("th", { scope: "col" }, head));
    place.append(
      this.#legend,
      this.#picture,
      this.#axis,
      element(
        "details",
        {},
        element("summary", {}, "as a table"),
        element(
          "div",
          { class: "sideways", role: "region", "aria-label": "Runs by outcome, as a table", tabindex: 0 },
          element(
            "table",
            {},
            element("caption", { class: "unseen" }, "Runs by outcome, by half a minute"),
            element("thead", {}, element("tr", {}, ...heads)),
            this.#rows,
          ),
        ),
      ),
    );
  }

  /** @param {Bin[]} bins */
  show(bins) {
    const sums = OUTCOMES.map((_, index) => bins.reduce((sum, bin) => sum + (bin.ended[index] ?? 0), 0));
    const highest = Math.max(1, ...bins.map((bin) => bin.ended.reduce((sum, ended) => sum + ended, 0)));
    const width = 100 / Math.max(1, bins.length);
    const nothing = sums.every((sum) => sum === 0);
    this.#picture.replaceChildren(
      ...bins.flatMap((bin, index) => bar(bin, index * width, width * 0.82, 100 / nice(highest))),
      drawing("line", { class: "floor", x1: 0, x2: "100%", y1: "100%", y2: "100%" }),
      nothing
        ? drawing("text", { class: "silence", x: "50%", y: "50%" }, "No run has ended in these minutes.")
        : drawing("text", { class: "scale", x: 0, y: 10 }, count(nice(highest))),
    );
    const told = OUTCOMES.map((outcome, index) => `${count(sums[index] ?? 0)} ${inWords(outcome)}`).join(
      ", ",
    );
    this.#picture.setAttribute("aria-label", `Runs that ended in the last minutes: ${told}`);
    const [first, last] = [bins[0], bins.at(-1)];
    this.#axis.replaceChildren(
      ...(first && last ? [clock(first.from), clock((first.from + last.from) / 2), "now"] : []).map((word) =>
        element("span", {}, word),
      ),
    );
    this.#legend.replaceChildren(
      ...OUTCOMES.map((outcome, index) =>
        element("li", {}, labelled(outcome), element("strong", {}, count(sums[index] ?? 0))),
      ),
    );
    this.#rows.replaceChildren(
      ...coarser(bins, ROW)
        .reverse()
        .map((bin) =>
          element(
            "tr",
            {},
            element("th", { scope: "row" }, clock(bin.from)),
            ...bin.ended.map((ended) => element("td", {}, count(ended))),
          ),
        ),
    );
  }
}

/**
 * One interval: a rectangle for each outcome, the bad ones on top.
 *
 * @param {Bin} bin
 * @param {number} x in percent
 * @param {number} width in percent
 * @param {number} scale percent of the height for one run
 */
function bar(bin, x, width, scale) {
  let top = 100;
  return bin.ended.flatMap((ended, index) => {
    const outcome = OUTCOMES[index];
    if (ended === 0 || outcome === undefined) return [];
    const height = ended * scale;
    top -= height;
    return drawing("rect", {
      x: `${x}%`,
      y: `${top}%`,
      width: `${width}%`,
      height: `${height}%`,
      fill: patternOf(outcome),
    });
  });
}

/**
 * A round number that is not below the given one.
 *
 * @param {number} number
 */
export function nice(number) {
  const power = 10 ** Math.floor(Math.log10(number));
  return ([1, 2, 3, 4, 5, 6, 8].find((step) => step * power >= number) ?? 10) * power;
}
