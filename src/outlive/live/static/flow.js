/**
 * A disconnect flow: its runs, its spans as a tree, its marks, and itself as text.
 *
 * @import {Flow, Outcome, Span} from "./types.js"
 *
 * @typedef {object} Run
 * @property {string} task
 * @property {Outcome} outcome
 *
 * @typedef {"deadline" | "absorbed" | "drain"} MarkKind
 * @typedef {object} Mark
 * @property {MarkKind} kind
 * @property {number} at in seconds from the disconnect
 */

import { duration } from "./numbers.js";
import { inWords, isOutcome } from "./outcomes.js";

/** @type {Record<string, MarkKind>} */
const MARKS = {
  "outlive.deadline": "deadline",
  "outlive.cancellation_absorbed": "absorbed",
  "outlive.drain": "drain",
};

/** @type {Record<MarkKind, string>} */
export const MARK_NAMES = {
  deadline: "deadline",
  absorbed: "absorbed cancellation",
  drain: "start of the drain",
};

/** @param {Span} span @returns {Outcome | null} null for what is no run */
export function outcomeOf(span) {
  const outcome = span.attributes["outlive.outcome"];
  return isOutcome(outcome) ? outcome : null;
}

/** @param {Flow} flow @returns {Run[]} */
export function runsOf(flow) {
  return flow.spans.flatMap((span) => {
    const outcome = outcomeOf(span);
    return outcome ? [{ task: String(span.attributes["outlive.task"]), outcome }] : [];
  });
}

/** @param {Span} span @returns {Mark[]} */
export function marksOf(span) {
  return span.events.flatMap(({ name, at }) => {
    const kind = MARKS[name];
    return kind ? [{ kind, at }] : [];
  });
}

/** @param {Flow} flow what the time axis must have room for, in seconds */
export function lengthOf(flow) {
  return Math.max(flow.tail, ...flow.spans.map((span) => span.start + span.duration)) || 1e-9;
}

/**
 * The spans as they lie below each other; one whose parent isn't there lies below the disconnect.
 *
 * @param {Flow} flow
 * @returns {{span: Span, depth: number}[]}
 */
export function inOrder(flow) {
  const known = new Set(flow.spans.map((span) => span.span_id));
  const root = flow.spans[0];
  /** @type {Map<string | null, Span[]>} */
  const children = new Map();
  for (const span of flow.spans) {
    const parent =
      span === root
        ? null
        : span.parent_id !== null && known.has(span.parent_id)
          ? span.parent_id
          : (root?.span_id ?? null);
    children.set(parent, [...(children.get(parent) ?? []), span]);
  }
  /** @type {(parent: string | null, depth: number) => {span: Span, depth: number}[]} */
  const below = (parent, depth) =>
    (children.get(parent) ?? []).flatMap((span) => [{ span, depth }, ...below(span.span_id, depth + 1)]);
  return below(null, 0);
}

/**
 * What a span is called, and what went wrong in it.
 *
 * @param {Span} span
 */
export function verdictOf(span) {
  const outcome = outcomeOf(span);
  const error = span.attributes["error.type"];
  const words = outcome ? [inWords(outcome)] : [];
  if (error !== undefined && error !== outcome) words.push(String(error));
  return words.join(", ");
}

/**
 * The flow as text, for a ticket or a message.
 *
 * @param {Flow} flow
 */
export function asText(flow) {
  const lines = inOrder(flow).map(({ span, depth }) => {
    const name = "  ".repeat(depth) + (depth === 0 ? "tail" : span.name);
    const times = `${duration(span.start).padStart(8)}  ${duration(span.duration).padStart(8)}`;
    const marks = marksOf(span).map(({ kind, at }) => `${MARK_NAMES[kind]} at ${duration(at)}`);
    const words = [verdictOf(span), ...marks].filter(Boolean).join(", ");
    return `${name.padEnd(36)} ${times}  ${words}`.trimEnd();
  });
  return [
    `disconnect ${flow.route}  (${inWords(flow.cause)}, ${flow.transport})`,
    `${new Date(flow.at * 1000).toISOString()}  trace ${flow.trace_id}`,
    "",
    `${"".padEnd(36)} ${"start".padStart(8)}  ${"took".padStart(8)}`,
    ...lines,
    "",
  ].join("\n");
}
