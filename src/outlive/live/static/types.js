/**
 * What the server tells, as types. Times are in seconds; `at` is since the epoch, by the server's clock.
 *
 * @typedef {"completed" | "timed_out" | "cancelled" | "failed" | "rejected"} Outcome
 * @typedef {"client_closed" | "client_lost" | "server_shutdown" | "error"} Cause
 * @typedef {"open" | "draining" | "closed"} ProcessState
 * @typedef {Record<Outcome, number>} ByOutcome
 *
 * @typedef {object} Task
 * @property {string} name
 * @property {number} timeout
 * @property {number} running
 * @property {number} pending
 * @property {number} stuck
 * @property {number} absorbed
 * @property {ByOutcome} outcomes
 * @property {number[]} durations  runs in each bucket of the histogram; the last one is above all bounds
 *
 * @typedef {object} Route
 * @property {string} route
 * @property {string} transport
 * @property {number} open
 * @property {Record<Cause, number>} disconnects
 * @property {number[]} tail  disconnect flows in each bucket of the histogram
 *
 * @typedef {object} State
 * @property {number} at
 * @property {ProcessState} state
 * @property {number} submitted
 * @property {ByOutcome} outcomes
 * @property {number} running
 * @property {number} pending
 * @property {number} stuck
 * @property {{running: number, pending: number}} limits
 * @property {number[]} bounds  upper bounds of the histograms' buckets, but for the last
 * @property {Task[]} tasks
 * @property {Route[]} routes
 *
 * @typedef {object} SpanEvent
 * @property {string} name
 * @property {number} at
 *
 * @typedef {object} Span
 * @property {string} span_id
 * @property {string | null} parent_id
 * @property {string} name
 * @property {number} start  from the disconnect
 * @property {number} duration
 * @property {boolean} error
 * @property {Record<string, unknown>} attributes
 * @property {SpanEvent[]} events
 *
 * @typedef {object} Flow
 * @property {string} trace_id
 * @property {string} route
 * @property {string} transport
 * @property {string} cause
 * @property {number} at
 * @property {number} tail
 * @property {Span[]} spans  the first one is the disconnect's
 *
 * @typedef {State & {flows: Flow[]}} News
 *
 * @typedef {object} Settings
 * @property {string} version
 * @property {number} objective
 * @property {number} interval  between two samples of the history
 * @property {number} span  of the history
 * @property {string | null} jaeger_ui_url
 *
 * @typedef {[number, number, number, number, number, number]} Sample
 *   the time, then the runs so far by outcome, in the order of OUTCOMES
 *
 * @typedef {News & Settings & {history: Sample[]}} Hello
 */

export {};
