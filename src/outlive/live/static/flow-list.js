/**
 * The disconnect flows, newest first. A flow that the reader looks at doesn't move away: new ones wait meanwhile.
 *
 * @import {Filter} from "./filters.js"
 * @import {Flow} from "./types.js"
 */

import { element, tell } from "./dom.js";
import { matches } from "./filters.js";
import { runsOf } from "./flow.js";
import { clock, count, duration } from "./numbers.js";
import { OUTCOMES, inWords, sign } from "./outcomes.js";

/** So many rows; of more only the filters make use. */
const MOST = 100;

export class FlowList {
  #list;
  #listing;
  #newer;
  #empty;
  #link;
  /** @type {Map<string, HTMLElement>} */
  #rows = new Map();
  /** @type {Flow[]} */
  #shown = [];
  /** @type {Flow[]} */
  #found = [];
  #kept = 0;
  #open = "";
  /** @type {Filter | null} */
  #filter = null;

  /**
   * @param {object} places
   * @param {Element} places.list
   * @param {Element} places.listing
   * @param {HTMLElement} places.newer
   * @param {HTMLElement} places.empty
   * @param {(flow: Flow) => string} link to a flow
   */
  constructor({ list, listing, newer, empty }, link) {
    this.#list = list;
    this.#listing = listing;
    this.#newer = newer;
    this.#empty = empty;
    this.#link = link;
    newer.addEventListener("click", () => {
      this.#render(this.#found);
      this.#list.querySelector("a")?.focus();
    });
    list.addEventListener("pointerleave", () => this.#update());
  }

  /**
   * @param {Flow[]} flows all that are kept, newest first
   * @param {Filter} filter
   * @param {string} open the trace id of the flow that is looked at
   */
  show(flows, filter, open) {
    this.#kept = flows.length;
    this.#found = flows.filter((flow) => matches(flow, filter)).slice(0, MOST);
    this.#open = open;
    const changed = JSON.stringify(filter) !== JSON.stringify(this.#filter);
    this.#filter = filter;
    // The links of the rows keep the filters.
    if (changed) this.#rows.clear();
    if (changed) this.#render(this.#found);
    else this.#update();
  }

  /** @param {string} trace the id of the flow whose row gets the focus, if it is there */
  focus(trace) {
    this.#rows.get(trace)?.querySelector("a")?.focus();
  }

  #update() {
    const held = this.#list.matches(":hover, :focus-within") || this.#open !== "";
    this.#render(held && this.#shown.length > 0 ? this.#shown : this.#found);
  }

  /** @param {Flow[]} flows */
  #render(flows) {
    this.#shown = flows;
    /** @type {Map<string, HTMLElement>} */
    const rows = new Map();
    for (const flow of flows) rows.set(flow.trace_id, this.#rows.get(flow.trace_id) ?? this.#row(flow));
    this.#rows = rows;
    const wanted = [...rows.values()];
    if (
      wanted.length !== this.#list.children.length ||
      wanted.some((row, index) => row !== this.#list.children[index])
    ) {
      this.#list.replaceChildren(...wanted);
    }
    for (const [trace, row] of rows) {
      const current = trace === this.#open;
      if (current) row.firstElementChild?.setAttribute("aria-current", "true");
      else row.firstElementChild?.removeAttribute("aria-current");
    }
    const known = new Set(rows.keys());
    const newer = this.#found.filter((flow) => !known.has(flow.trace_id)).length;
    this.#newer.hidden = newer === 0;
    tell(this.#newer, `Show ${count(newer)} newer`);
    tell(this.#listing, this.#kept ? `${count(flows.length)} of ${count(this.#kept)} kept` : "");
    this.#empty.hidden = flows.length > 0;
    if (flows.length === 0) this.#sayWhatToDo();
  }

  #sayWhatToDo() {
    const told = this.#kept
      ? [element("p", {}, element("strong", {}, "No flow that is kept matches the filters."))]
      : [
          element("p", {}, element("strong", {}, "No disconnect flow has ended yet.")),
          element(
            "p",
            {},
            "A flow begins when a client goes away and there is work to do because of it. Send some clients:",
          ),
          element("pre", {}, `outlive traffic ${location.origin}`),
        ];
    if (this.#empty.textContent !== told.map((node) => node.textContent).join(""))
      this.#empty.replaceChildren(...told);
  }

  /** @param {Flow} flow */
  #row(flow) {
    const runs = runsOf(flow);
    const signs = OUTCOMES.flatMap((outcome) => {
      const many = runs.filter((run) => run.outcome === outcome).length;
      const said = element("span", { class: "unseen" }, `${many} ${inWords(outcome)}`);
      return many
        ? [
            element(
              "span",
              { class: "outcome" },
              sign(outcome),
              element("span", { "aria-hidden": "true" }, String(many)),
              said,
            ),
          ]
        : [];
    });
    return element(
      "li",
      {},
      element(
        "a",
        { href: this.#link(flow), "data-trace": flow.trace_id },
        element("code", { class: "route" }, flow.route),
        element("span", { class: "tail" }, duration(flow.tail)),
        element("span", { class: "facts" }, `${clock(flow.at)} · ${inWords(flow.cause)} · ${flow.transport}`),
        element("span", { class: "signs" }, ...signs),
      ),
    );
  }
}
