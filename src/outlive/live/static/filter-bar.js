/**
 * The filters as the reader sees them.
 *
 * @import {Filter, FilterName} from "./filters.js"
 */

import { element } from "./dom.js";
import { FILTERS } from "./filters.js";
import { inWords } from "./outcomes.js";

/** What is read aloud as words; the rest are names, and stay as they are. */
const WORDS = ["outcome", "cause"];

export class FilterBar {
  /** @type {Record<FilterName, HTMLSelectElement>} */
  #selects;
  #clear = element("button", { type: "button", hidden: true }, "Clear filters");

  /**
   * @param {Element} place
   * @param {(filter: Filter) => void} chosen
   */
  constructor(place, chosen) {
    const selects = FILTERS.map((name) => {
      const select = element("select", { name });
      select.addEventListener("change", () => chosen(this.#filter));
      place.append(element("label", {}, element("span", {}, name), select));
      return [name, select];
    });
    this.#selects = Object.fromEntries(selects);
    place.append(this.#clear);
    this.#clear.addEventListener("click", () => {
      for (const name of FILTERS) this.#selects[name].value = "";
      this.#selects.outcome.focus();
      chosen(this.#filter);
    });
  }

  get #filter() {
    const entries = FILTERS.map((name) => [name, this.#selects[name].value]);
    return /** @type {Filter} */ (Object.fromEntries(entries));
  }

  /**
   * @param {Record<FilterName, string[]>} choices
   * @param {Filter} filter what is chosen; it can be chosen even if no flow is like it
   */
  show(choices, filter) {
    for (const name of FILTERS) {
      const select = this.#selects[name];
      const values = ["", ...new Set([...choices[name], ...(filter[name] ? [filter[name]] : [])])];
      // An open list of choices closes when it changes, so it is left alone unless it must.
      const there = [...select.options].map((option) => option.value);
      if (values.length !== there.length || values.some((value, index) => value !== there[index])) {
        select.replaceChildren(
          ...values.map((value) => element("option", { value }, this.#said(name, value))),
        );
      }
      select.value = filter[name];
    }
    this.#clear.hidden = FILTERS.every((name) => filter[name] === "");
  }

  /** @param {FilterName} name @param {string} value */
  #said(name, value) {
    if (value === "") return "any";
    return WORDS.includes(name) ? inWords(value) : value;
  }
}
