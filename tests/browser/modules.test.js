/** What the page's modules compute. Run by `node --test`. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { hashOf, placeOf } from "../../src/outlive/live/static/address.js";
import { choices, matches } from "../../src/outlive/live/static/filters.js";
import { FlowStore, MOST } from "../../src/outlive/live/static/flow-store.js";
import { asText, inOrder, lengthOf, marksOf, runsOf } from "../../src/outlive/live/static/flow.js";
import { History, coarser } from "../../src/outlive/live/static/history.js";
import { clock, count, duration, percent } from "../../src/outlive/live/static/numbers.js";
import { availability, inWords } from "../../src/outlive/live/static/outcomes.js";
import { nice } from "../../src/outlive/live/static/outcomes-chart.js";
import { quantile, sum } from "../../src/outlive/live/static/quantile.js";
import { compare, sorted } from "../../src/outlive/live/static/sorting.js";
import { rowOf } from "../../src/outlive/live/static/tasks-table.js";

const none = { completed: 0, timed_out: 0, cancelled: 0, failed: 0, rejected: 0 };

const span = (id, parent, name, more = {}) => ({
  span_id: id,
  parent_id: parent,
  name,
  start: 0,
  duration: 1,
  error: false,
  attributes: {},
  events: [],
  ...more,
});

const run = (id, task, outcome, more = {}) =>
  span(id, "root", task, { attributes: { "outlive.task": task, "outlive.outcome": outcome }, ...more });

const flow = (trace, runs = [], more = {}) => ({
  trace_id: trace,
  route: "/rooms/{room}",
  transport: "websocket",
  cause: "client_lost",
  at: 1_700_000_000,
  tail: 1.5,
  spans: [span("root", null, "disconnect /rooms/{room}", { duration: 1.5 }), ...runs],
  ...more,
});

test("a quantile is Prometheus's", () => {
  assert.equal(quantile([1, 2, 4], [0, 0, 0, 0], 0.5), null);
  assert.equal(quantile([1, 2, 4], [10, 0, 0, 0], 0.5), 0.5);
  assert.equal(quantile([1, 2, 4], [5, 5, 0, 0], 0.5), 1);
  assert.equal(quantile([1, 2, 4], [0, 10, 10, 0], 0.75), 3);
  assert.equal(quantile([1, 2, 4], [0, 0, 0, 3], 0.5), Infinity);
  assert.equal(quantile([1, 2, 4], [1, 0, 0, 1], 0.99), Infinity);
});

test("histograms add up", () => {
  assert.deepEqual(
    sum([
      [1, 2],
      [3, 4],
    ]),
    [4, 6],
  );
  assert.deepEqual(sum([]), []);
});

test("no run uses more than all of its timeout, whatever the bucket's bound is", () => {
  const task = { name: "a", timeout: 2.2, running: 0, pending: 0, stuck: 0, absorbed: 0, outcomes: none };
  assert.equal(rowOf({ ...task, durations: [0, 10, 0, 0] }, [1, 2, 2.5]).used, 1.95 / 2.2);
  assert.equal(rowOf({ ...task, durations: [0, 0, 10, 0] }, [1, 2, 2.5]).used, 1);
  assert.equal(rowOf({ ...task, durations: [0, 0, 0, 0] }, [1, 2, 2.5]).used, null);
});

test("durations have as many digits as matter", () => {
  const written = [null, 0, 0.0004, 0.0123, 0.0999, 0.5, 0.9999, 1.234, 12.34, 125, 7200].map(duration);
  const expected = [
    "–",
    "0 ms",
    "0.4 ms",
    "12 ms",
    "100 ms",
    "500 ms",
    "1.00 s",
    "1.23 s",
    "12.3 s",
    "2 min",
    "2 h",
  ];
  assert.deepEqual(written, expected);
});

test("a share is neither rounded up to all nor down to nothing", () => {
  assert.equal(percent(null), "–");
  assert.equal(percent(1, 2), "100.00 %");
  assert.equal(percent(0.99999, 2), "99.99 %");
  assert.equal(percent(0, 1), "0.0 %");
  assert.equal(percent(0.0001), "< 1 %");
  assert.equal(percent(0.424), "42 %");
  assert.equal(percent(1.5), "150 %");
});

test("numbers and times are written in one way", () => {
  assert.equal(count(1234567), "1,234,567");
  assert.match(clock(1_700_000_000), /^\d\d:\d\d:20$/);
  assert.equal(inWords("server_shutdown"), "server shutdown");
});

test("what ends badly counts against the objective, and a cancelled run doesn't", () => {
  assert.equal(availability(none), null);
  assert.equal(availability({ ...none, completed: 6, cancelled: 2, timed_out: 1, failed: 1 }), 0.8);
  assert.equal(availability({ ...none, rejected: 1 }), 0);
});

test("the history counts what ended in each interval", () => {
  const history = new History(5, 20, [
    [100, 0, 0, 0, 0, 0],
    [105, 3, 0, 0, 0, 0],
    [110, 3, 1, 0, 0, 0],
  ]);
  history.add(113, { ...none, completed: 5, timed_out: 1 });
  assert.deepEqual(
    history.bins.map((bin) => bin.from),
    [97.5, 102.5, 107.5, 112.5],
  );
  assert.deepEqual(
    history.bins.map((bin) => bin.ended[0]),
    [0, 3, 0, 2],
  );
  assert.deepEqual(
    history.bins.map((bin) => bin.ended[1]),
    [0, 0, 1, 0],
  );
});

test("the history knows what ended since it began, and no more", () => {
  const history = new History(5, 20, [[101, 40, 0, 0, 0, 0]]);
  history.add(104, { ...none, completed: 42 });
  assert.deepEqual(
    history.bins.map((bin) => bin.ended[0]),
    [0, 0, 0, 2],
  );
  // A process that started anew counts from nothing.
  history.add(106, none);
  assert.equal(history.bins.at(-1).ended[0], 0);
  assert.deepEqual(new History(5, 20, []).bins, []);
});

test("a sample that comes a little late leaves no gap", () => {
  const history = new History(5, 20, [
    [100, 0, 0, 0, 0, 0],
    [105.9, 1, 0, 0, 0, 0],
    [110.1, 2, 0, 0, 0, 0],
    [116.4, 3, 0, 0, 0, 0],
  ]);
  const completed = history.bins.map((bin) => bin.ended[0]);
  assert.deepEqual(completed, [0, 1, 1, 1]);
});

test("intervals that nobody looked at are empty, and the history is bounded", () => {
  const history = new History(5, 20, [[100, 1, 0, 0, 0, 0]]);
  history.add(1000, { ...none, completed: 9 });
  assert.deepEqual(
    history.bins.map((bin) => bin.ended[0]),
    [0, 0, 0, 0],
  );
  history.add(1005, { ...none, completed: 10 });
  assert.deepEqual(
    history.bins.map((bin) => bin.ended[0]),
    [0, 0, 0, 1],
  );
});

test("intervals can be put together", () => {
  const bins = [1, 2, 3].map((n) => ({ from: n, ended: [n, 0, 0, 0, 1] }));
  assert.deepEqual(coarser(bins, 2), [
    { from: 1, ended: [3, 0, 0, 0, 2] },
    { from: 3, ended: [3, 0, 0, 0, 1] },
  ]);
});

test("a scale ends at a round number that is not below the highest", () => {
  assert.deepEqual([1, 3, 7, 10, 11, 79, 81, 9001].map(nice), [1, 3, 8, 10, 20, 80, 100, 10000]);
});

test("rows are sorted by numbers and by words, and equal ones keep their order", () => {
  assert.deepEqual(
    sorted([10, 9, 1], (n) => n, false),
    [1, 9, 10],
  );
  assert.deepEqual(
    sorted(["b", "a"], (word) => word, true),
    ["b", "a"],
  );
  assert.ok(compare("a10", "b1") < 0);
  const rows = [
    { n: 1, id: "a" },
    { n: 1, id: "b" },
    { n: 2, id: "c" },
  ];
  assert.deepEqual(
    sorted(rows, (row) => row.n, true).map((row) => row.id),
    ["c", "a", "b"],
  );
});

test("spans lie below their parents, and orphans below the disconnect", () => {
  const told = flow("t", [
    run("r1", "save", "completed"),
    span("c", "r1", "POST"),
    span("o", "gone", "orphan"),
  ]);
  assert.deepEqual(
    inOrder(told).map(({ span: { span_id }, depth }) => [span_id, depth]),
    [
      ["root", 0],
      ["r1", 1],
      ["c", 2],
      ["o", 1],
    ],
  );
});

test("the time axis has room for a span that ends after the tail", () => {
  assert.equal(lengthOf(flow("t", [span("late", "root", "x", { start: 1, duration: 2 })])), 3);
  assert.ok(lengthOf(flow("t", [], { tail: 0, spans: [span("root", null, "d", { duration: 0 })] })) > 0);
});

test("only what is known becomes a mark or a run", () => {
  const events = [
    { name: "outlive.deadline", at: 0.5 },
    { name: "something else", at: 1 },
  ];
  assert.deepEqual(marksOf(span("s", null, "x", { events })), [{ kind: "deadline", at: 0.5 }]);
  assert.deepEqual(
    runsOf(flow("t", [run("r", "save", "failed"), span("c", "r", "POST"), run("x", "odd", "unheard of")])),
    [{ task: "save", outcome: "failed" }],
  );
});

test("a flow as text has everything in its place", () => {
  const events = [{ name: "outlive.deadline", at: 1.5 }];
  const text = asText(
    flow("4bf9", [run("r", "notify", "timed_out", { duration: 1.5, events }), span("c", "r", "POST")]),
  );
  assert.equal(
    text,
    [
      "disconnect /rooms/{room}  (client lost, websocket)",
      "2023-11-14T22:13:20.000Z  trace 4bf9",
      "",
      "                                        start      took",
      "tail                                     0 ms    1.50 s",
      "  notify                                 0 ms    1.50 s  timed out, deadline at 1.50 s",
      "    POST                                 0 ms    1.00 s",
      "",
    ].join("\n"),
  );
});

test("a filter wants its outcome and its task of one and the same run", () => {
  const any = { outcome: "", task: "", route: "", cause: "" };
  const told = flow("t", [run("a", "save", "completed"), run("b", "notify", "failed")]);
  assert.ok(matches(told, any));
  assert.ok(matches(flow("without runs"), any));
  assert.ok(matches(told, { ...any, outcome: "failed", task: "notify" }));
  assert.ok(!matches(told, { ...any, outcome: "failed", task: "save" }));
  assert.ok(!matches(told, { ...any, route: "/other" }));
  assert.ok(!matches(told, { ...any, cause: "error" }));
  assert.deepEqual(choices([told]), {
    outcome: ["completed", "failed"],
    task: ["notify", "save"],
    route: ["/rooms/{room}"],
    cause: ["client_lost"],
  });
});

test("an address holds the filters and the open flow, whatever they are called", () => {
  const place = {
    flow: "4bf9",
    filter: { outcome: "failed", task: "a&b=c#d", route: "/rooms/{room}", cause: "" },
  };
  assert.deepEqual(placeOf(hashOf(place)), place);
  const nowhere = { flow: "", filter: { outcome: "", task: "", route: "", cause: "" } };
  assert.equal(hashOf(nowhere), "#");
  assert.deepEqual(placeOf(""), nowhere);
  assert.deepEqual(placeOf("#%ff&=&x=1"), nowhere);
});

test("flows are kept once, newest first, and good ones push no bad one out", () => {
  const store = new FlowStore();
  store.add([flow("bad", [run("r", "save", "failed", { error: true })])]);
  for (let n = 0; n < MOST + 10; n += 1) store.add([flow(`good-${n}`)]);
  store.add([flow(`good-${MOST + 9}`)]);
  assert.equal(store.all.length, MOST + 1);
  assert.equal(store.all[0].trace_id, `good-${MOST + 9}`);
  assert.ok(store.find("bad"));
  assert.equal(store.find("good-0"), undefined);
});
