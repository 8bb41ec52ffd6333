/**
 * The page: it puts what the feed tells into its places.
 *
 * @import {Flow, Hello, News} from "./types.js"
 */

import { hashOf, placeOf } from "./address.js";
import { DisconnectsTable } from "./disconnects-table.js";
import { byId, element, tell } from "./dom.js";
import { Feed } from "./feed.js";
import { FilterBar } from "./filter-bar.js";
import { choices } from "./filters.js";
import { FlowList } from "./flow-list.js";
import { FlowStore } from "./flow-store.js";
import { History } from "./history.js";
import { clock } from "./numbers.js";
import { OutcomesChart } from "./outcomes-chart.js";
import { TailChart } from "./tail-chart.js";
import { TasksTable } from "./tasks-table.js";
import { Tiles } from "./tiles.js";
import { waterfall } from "./waterfall.js";

const views = {
  tiles: new Tiles(byId("tiles")),
  outcomes: new OutcomesChart(byId("outcomes")),
  tail: new TailChart(byId("tail")),
  tasks: new TasksTable(byId("tasks")),
  disconnects: new DisconnectsTable(byId("disconnects")),
  filters: new FilterBar(byId("filters"), (filter) => go({ ...place, filter })),
  flows: new FlowList(
    { list: byId("flow-list"), listing: byId("listing"), newer: byId("newer"), empty: byId("no-flows") },
    (flow) => hashOf({ ...place, flow: flow.trace_id }),
  ),
};
const flows = new FlowStore();
let place = placeOf(location.hash);
/** @type {Hello | null} */
let settings = null;
let history = new History(1, 1, []);
/** @type {News | null} */
let latest = null;
let shownFlow = "";

new Feed("feed", {
  hello(hello) {
    settings = hello;
    history = new History(hello.interval, hello.span, hello.history);
    tell(
      byId("footer"),
      `Outlive ${hello.version}. Numbers are those of this process, the same as in its metrics.`,
    );
    byId("banner").hidden = true;
    heard(hello);
  },
  news: heard,
  ended(news) {
    heard(news);
    warn("closed", "The process has drained and closed. Waiting for the next one …");
  },
  lost() {
    if (latest === null) warn("", "The service doesn't answer. Trying again …");
    else warn("lost", `${why(latest)}; the numbers are those of ${clock(latest.at)}. Trying again …`);
  },
});

/** @param {News} news */
function heard(news) {
  latest = news;
  history.add(news.at, news.outcomes);
  flows.add(news.flows);
  stateIs(news.state);
  tell(byId("feed-state"), `live · ${clock(news.at)}`);
  views.tiles.show(news, settings?.objective ?? 1);
  views.outcomes.show(history.bins);
  views.tail.show(news);
  views.tasks.show(news);
  views.disconnects.show(news);
  showFlows();
}

/** @param {News} last what was heard before the feed broke */
const why = ({ state }) =>
  state === "draining" ? "The process drains on, and doesn't tell of it here any more" : "The feed is broken";

/** @param {string} state */
function stateIs(state) {
  const shown = byId("process-state");
  shown.dataset["state"] = state;
  tell(shown, state);
}

/**
 * @param {string} state
 * @param {string} text
 */
function warn(state, text) {
  // What was closed is closed, however often it doesn't answer.
  if (byId("process-state").dataset["state"] !== "closed" || state === "closed") {
    stateIs(state);
    tell(byId("banner"), text);
  }
  byId("banner").classList.toggle("calm", byId("process-state").dataset["state"] === "closed");
  byId("banner").hidden = false;
  tell(byId("feed-state"), "not connected");
}

function showFlows() {
  const kept = flows.all;
  byId("invitation").hidden = kept.length === 0 || place.flow !== "";
  views.filters.show(choices(kept), place.filter);
  views.flows.show(kept, place.filter, place.flow);
  showWaterfall();
}

async function showWaterfall() {
  const wanted = place.flow;
  if (wanted === shownFlow || settings === null) return;
  shownFlow = wanted;
  const area = byId("waterfall");
  area.hidden = wanted === "";
  byId("flows").classList.toggle("opened", wanted !== "");
  if (wanted === "") return;
  const flow = flows.find(wanted) ?? (await fetched(wanted));
  if (shownFlow !== wanted) return;
  const close = () => go({ ...place, flow: "" });
  area.replaceChildren(
    ...(flow ? waterfall(flow, { jaeger: settings.jaeger_ui_url, close }) : missing(close)),
  );
  area.focus({ preventScroll: true });
  area.scrollIntoView({ block: "nearest" });
}

/**
 * A flow from before this page was open.
 *
 * @param {string} trace
 * @returns {Promise<Flow | undefined>}
 */
async function fetched(trace) {
  try {
    const answer = await fetch(`flows?${new URLSearchParams({ trace_id: trace })}`);
    return (await answer.json()).flows[0];
  } catch {
    return undefined;
  }
}

/** @param {() => void} close */
function missing(close) {
  const button = element("button", { type: "button" }, "Back to the flows");
  button.addEventListener("click", close);
  return [
    element("h3", {}, "This flow isn't kept any more"),
    element(
      "p",
      {},
      "A process keeps its last flows only (FLOWS_KEPT), and until its end. A tracing backend has the rest.",
    ),
    button,
  ];
}

/** @param {import("./address.js").Place} next */
function go(next) {
  const before = place.flow;
  location.hash = hashOf(next);
  // Back to where the reader came from.
  if (before && !next.flow) views.flows.focus(before);
}

addEventListener("hashchange", () => {
  // The link that skips to the flows changes nothing of what is shown.
  if (location.hash === "#flows-title") return;
  place = placeOf(location.hash);
  showFlows();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && place.flow) go({ ...place, flow: "" });
});
