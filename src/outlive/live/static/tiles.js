/**
 * Above all: connections, running, pending and stuck runs against their limits, and the objective.
 *
 * @import {State} from "./types.js"
 */

import { drawing, element, tell } from "./dom.js";
import { count, percent } from "./numbers.js";
import { availability } from "./outcomes.js";

const TRANSPORTS = ["websocket", "sse", "http"];

/** One number, with what belongs to it below. */
class Tile {
  #number = element("span", { class: "number" });
  #unit = element("span", { class: "unit" });
  #note = element("span", { class: "note" });
  #level = drawing("rect", { height: "100%", rx: 2 });
  #meter = drawing(
    "svg",
    { class: "meter", "aria-hidden": "true" },
    drawing("rect", { width: "100%", height: "100%", rx: 2 }),
    this.#level,
  );
  #box;

  /**
   * @param {Element} list
   * @param {string} name
   */
  constructor(list, name) {
    this.#box = element(
      "div",
      { class: "tile card" },
      element("dt", {}, name),
      element(
        "dd",
        {},
        element("span", { class: "figure" }, this.#number, " ", this.#unit),
        this.#meter,
        this.#note,
      ),
    );
    list.append(this.#box);
  }

  /**
   * @param {string} number
   * @param {object} more
   * @param {string} [more.unit]
   * @param {string} [more.note]
   * @param {number | null} [more.level] from 0 to 1, for the meter; null for none
   * @param {string} [more.mood] "good", "bad" or ""
   */
  show(number, { unit = "", note = "", level = null, mood = "" }) {
    tell(this.#number, number);
    tell(this.#unit, unit);
    tell(this.#note, note);
    this.#meter.toggleAttribute("hidden", level === null);
    this.#level.setAttribute("width", `${100 * Math.min(1, level ?? 0)}%`);
    this.#box.dataset["mood"] = mood;
  }
}

export class Tiles {
  #connections;
  #running;
  #pending;
  #stuck;
  #objective;

  /** @param {Element} list */
  constructor(list) {
    this.#connections = new Tile(list, "Connections");
    this.#running = new Tile(list, "Running");
    this.#pending = new Tile(list, "Pending");
    this.#stuck = new Tile(list, "Stuck");
    this.#objective = new Tile(list, "Ended well");
  }

  /**
   * @param {State} state
   * @param {number} objective the share of runs that shall not end badly
   */
  show(state, objective) {
    const open = TRANSPORTS.map((transport) => ({
      transport,
      open: state.routes
        .filter((route) => route.transport === transport)
        .reduce((sum, route) => sum + route.open, 0),
    }));
    this.#connections.show(count(open.reduce((sum, each) => sum + each.open, 0)), {
      note: open.map((each) => `${count(each.open)}\u00a0${each.transport}`).join(" · "),
    });
    this.#limited(this.#running, state.running, state.limits.running, "runs at once");
    this.#limited(this.#pending, state.pending, state.limits.pending, "may wait");
    this.#stuck.show(count(state.stuck), {
      note: state.stuck ? "cancelled, not ended: see the log" : "no run hangs after its end",
      mood: state.stuck ? "bad" : "",
    });
    const well = availability(state.outcomes);
    this.#objective.show(percent(well, 2), {
      note: `objective ${percent(objective, 1)}: ${well === null ? "no run has ended yet" : well < objective ? "missed" : "met"}`,
      mood: well === null ? "" : well < objective ? "bad" : "good",
    });
  }

  /**
   * @param {Tile} tile
   * @param {number} number
   * @param {number} limit
   * @param {string} what
   */
  #limited(tile, number, limit, what) {
    const level = limit ? number / limit : 0;
    tile.show(count(number), {
      unit: `/ ${count(limit)}`,
      note: level >= 0.8 ? `${percent(level)} of the limit` : what,
      level,
      mood: level >= 0.8 ? "bad" : "",
    });
  }
}
