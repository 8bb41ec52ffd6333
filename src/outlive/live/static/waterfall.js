/**
 * One disconnect flow: a bar for each span, from the disconnect to the end of the last run.
 *
 * @import {Flow, Span} from "./types.js"
 * @import {Mark} from "./flow.js"
 */

import { copy } from "./clipboard.js";
import { drawing, element } from "./dom.js";
import { MARK_NAMES, asText, inOrder, lengthOf, marksOf, outcomeOf, verdictOf } from "./flow.js";
import { clock, duration } from "./numbers.js";
import { inWords, patternOf, sign } from "./outcomes.js";

const TICKS = [0, 0.25, 0.5, 0.75, 1];

/** Below so much of the width a bar can't be seen any more, in percent. */
const THINNEST = 0.6;

/**
 * @param {Flow} flow
 * @param {object} around
 * @param {string | null} around.jaeger Jaeger's address, for a link
 * @param {() => void} around.close
 */
export function waterfall(flow, { jaeger, close }) {
  const length = lengthOf(flow);
  const rows = inOrder(flow);
  return [heading(flow, jaeger, close), axis(length), rowsOf(rows, length), marksLegend(flow)];
}

/**
 * @param {Flow} flow
 * @param {string | null} jaeger
 * @param {() => void} close
 */
function heading(flow, jaeger, close) {
  const root = flow.spans[0];
  const lasted = root?.attributes["outlive.connection.duration"];
  const facts = [
    clock(flow.at),
    inWords(flow.cause),
    flow.transport,
    ...(typeof lasted === "number" ? [`connected for ${duration(lasted)}`] : []),
  ];
  const closing = element("button", { type: "button", class: "close", "aria-label": "Close this flow" }, "✕");
  closing.addEventListener("click", close);
  return element(
    "header",
    {},
    element("h3", {}, "disconnect ", element("code", {}, flow.route)),
    closing,
    element("p", { class: "facts" }, facts.join(" · ")),
    element("p", { class: "facts" }, "trace ", element("code", {}, flow.trace_id)),
    element(
      "p",
      { class: "actions" },
      copying("Copy as text", () => asText(flow)),
      copying("Copy link", () => location.href),
      jaeger === null
        ? null
        : element(
            "a",
            {
              class: "button",
              href: `${jaeger}/trace/${flow.trace_id}`,
              target: "_blank",
              rel: "noopener noreferrer",
            },
            "Open in Jaeger",
          ),
    ),
  );
}

/**
 * @param {string} name
 * @param {() => string} text
 */
function copying(name, text) {
  const button = element("button", { type: "button" }, name);
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text())) ? "Copied" : "Not copied";
    setTimeout(() => (button.textContent = name), 2000);
  });
  return button;
}

/** @param {number} length in seconds */
function axis(length) {
  return element(
    "p",
    { class: "time-axis", "aria-hidden": "true" },
    element(
      "span",
      { class: "times" },
      ...TICKS.map((part) => element("span", {}, part ? duration(part * length) : "0")),
    ),
  );
}

/**
 * @param {{span: Span, depth: number}[]} rows
 * @param {number} length
 */
function rowsOf(rows, length) {
  return element("ul", { class: "spans" }, ...rows.map(({ span, depth }) => row(span, depth, length)));
}

/**
 * @param {Span} span
 * @param {number} depth
 * @param {number} length
 */
function row(span, depth, length) {
  const outcome = outcomeOf(span);
  const marks = marksOf(span);
  const verdict = verdictOf(span);
  const name = depth === 0 ? "tail" : span.name;
  const kind = outcome ?? (depth === 0 ? "root" : span.error ? "call wrong" : "call");
  const told = [verdict, ...marks.map((mark) => `${MARK_NAMES[mark.kind]} at ${duration(mark.at)}`)].filter(
    Boolean,
  );
  const summary = element(
    "summary",
    {},
    element(
      "span",
      { class: "name", "data-depth": Math.min(depth, 6) },
      outcome ? sign(outcome) : element("span", { class: `dot ${kind}` }),
      element("span", {}, name),
    ),
    bars(span, marks, kind, length),
    element("span", { class: "took" }, duration(span.duration)),
    element("span", { class: "verdict" }, told.join(" · ")),
  );
  return element("li", {}, element("details", {}, summary, attributes(span)));
}

/**
 * @param {Span} span
 * @param {Mark[]} marks
 * @param {string} kind
 * @param {number} length
 */
function bars(span, marks, kind, length) {
  const outcome = outcomeOf(span);
  const x = (100 * span.start) / length;
  const width = Math.max(THINNEST, (100 * span.duration) / length);
  return drawing(
    "svg",
    { class: "lane", "aria-hidden": "true" },
    ...TICKS.map((part) =>
      drawing("line", { class: "tick", x1: `${100 * part}%`, x2: `${100 * part}%`, y1: 0, y2: "100%" }),
    ),
    drawing("rect", {
      class: outcome ? "bar" : `bar ${kind}`,
      x: `${Math.min(x, 100 - THINNEST)}%`,
      y: 5,
      width: `${width}%`,
      height: 14,
      rx: 3,
      ...(outcome ? { fill: patternOf(outcome) } : {}),
    }),
    ...marks.map(({ kind: mark, at }) =>
      drawing(
        "svg",
        {
          class: `mark ${mark}`,
          x: `${Math.min(100, Math.max(0, (100 * at) / length))}%`,
          overflow: "visible",
        },
        drawing("use", { href: `#mark-${mark}`, x: -8, y: 4, width: 16, height: 16 }),
      ),
    ),
  );
}

/** @param {Span} span */
function attributes(span) {
  const entries = [
    ["starts", duration(span.start)],
    ["took", duration(span.duration)],
    ...Object.entries(span.attributes).map(([name, value]) => [name, written(value)]),
    ...span.events.map(({ name, at }) => [`event ${name}`, `at ${duration(at)}`]),
  ];
  return element(
    "dl",
    { class: "attributes" },
    ...entries.flatMap(([name = "", value = ""]) => [element("dt", {}, name), element("dd", {}, value)]),
  );
}

/** @param {unknown} value */
const written = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** @param {Flow} flow */
function marksLegend(flow) {
  const kinds = new Set(flow.spans.flatMap(marksOf).map((mark) => mark.kind));
  return element(
    "p",
    { class: "marks" },
    ...[...kinds].map((kind) =>
      element(
        "span",
        {},
        drawing(
          "svg",
          { class: `mark ${kind}`, "aria-hidden": "true" },
          drawing("use", { href: `#mark-${kind}` }),
        ),
        MARK_NAMES[kind],
      ),
    ),
    element("span", { class: "tip" }, "A row opens to its attributes."),
  );
}
