// The interpreter of the state machine: the page's script contains the table (chatapp/connection_states.py);
// tests/vectors/states.json has examples. No I/O, no clock: takes an event and the time, returns a new record and the
// names of actions. Times and delays are milliseconds; `random` returns a value in [0, 1).
//
// An event is {type, …}: reason; of (of a cause: the reason that it explains); advice_ms (Retry-After, or the advice in
// a close reason); quick (a held poll was cut: worth one retry at once); rtt, jitter; queued; level (of activity:
// active, visible, idle; of quality: excellent … lost, unknown), score, limit; trigger (of a suspicion: see
// detector.js); silent_ms (since the last byte of a closed socket).

import {
  PROBE_CAP, charge, headStart, noteEnd, pollRetryDelay, probeDelay, proof, retryDelay, slowRetryDelay,
} from "./delays.js"

const BUDGET = 60000 // token bucket: six polls during suspicions, and one more every ten seconds
const POLL_COST = 10000
const PAUSES = ["rate-limited", "drill", "server-storage"] // reasons of working polls
const OFFLINE_ATTEMPTS = 5 // attempts are not counted while offline: the delay is as after this many

export const ENDED = ["signed-out", "session-expired", "session-revoked"] // reasons for which a person must sign in

export const isConnected = (status) => status === "connected" || status === "polling"

const allows = (config, transport) => config.transports.includes(transport)

// --- the interpreter ---

// The observable record (the first nine fields) and the memory of the interpreter. Times are absolute.
//   ws: none, opening, ready, up, suspect; poll: none, trying, up, failed
//   penalty: of WebSocket, at penaltyAt; blame: to be added once the server answers
//   gaps: the silence before each of the last cuts; budget: for polls during suspicions
//   suspicion: {trigger, at, flowsAt: the first answer to a poll meanwhile, polls: true if one runs meanwhile}
//   foretold: the end of one: {trigger, outcome: averted, confirmed, both-failed, lead: from flowsAt to the close}
export function newRecord(config) {
  return {
    status: "disconnected", lastConnected: null, reconnectAttempts: 0, connectionType: config.transports[0],
    reason: null, rtt: null, quality: null, nextRetryAt: null, queued: 0,
    ws: "none", poll: "none", wsReason: null, pollReason: null, pollFailures: 0, quickUsed: false, slowRetries: 0,
    probeDelay: 0, wsTriedAt: 0, wsSince: 0, penalty: 0, penaltyAt: 0, blame: 0, blamedAt: 0, dampedUntil: 0, gaps: [],
    killGap: 0, budget: BUDGET, budgetAt: 0, suspicion: null, foretold: null, qualityLevel: "unknown", qualityLimit: null, notBefore: 0,
    activity: "active", offline: false, timers: {},
  }
}

// states: {states, timers, table}, from table_json(). → [record, actions]
export function step(states, record, event, now, config, random) {
  const after = { ...record, timers: { ...record.timers } }
  const world = { states, now, config, random }
  if (event.type !== "tick") return [after, handle(after, event, world)]
  const actions = []
  for (const [timer, name] of Object.entries(states.timers)) {
    if ((after.timers[timer] ?? Infinity) > now) continue
    delete after.timers[timer]
    actions.push(...handle(after, { type: name }, world))
  }
  return [after, actions]
}

// Events of a transport count only in these states: those of one that was closed meanwhile are stale.
const CREDIBLE = {
  ws_ready: ["ws", ["opening"]],
  ws_proved: ["ws", ["ready", "up"]],
  ws_suspect: ["ws", ["up"]],
  ws_recovered: ["ws", ["suspect"]],
  ws_closed: ["ws", ["opening", "ready", "up", "suspect"]],
  poll_answered: ["poll", ["trying", "up", "failed"]],
  poll_failed: ["poll", ["trying", "up", "failed"]],
}

function handle(record, event, world) {
  const before = record.status
  const [field, credible] = CREDIBLE[event.type] ?? []
  if (field && !credible.includes(record[field])) return []
  note(record, event, world.now)
  const row = world.states.table[before][nameOf(record, event, world)]
  let actions = []
  if (row) {
    record.status = row[0]
    actions = row[1].split(" ").filter((action) => apply(record, action, world))
  }
  settle(record, before, world)
  return actions
}

function note(record, event, now) {
  const kind = event.type
  if (kind === "attempt_over") noteSilence(record)
  if ("rtt" in event) record.rtt = event.rtt
  if ("queued" in event) record.queued = event.queued
  if (event.advice_ms > 0) noteAdvice(record, now + event.advice_ms)
  if (["hidden", "wake", "activity"].includes(kind)) {
    record.activity = kind === "wake" ? "active" : event.level ?? "hidden"
  } else if (kind === "offline" || kind === "online") record.offline = kind === "offline"
  else if (kind === "quality") {
    const { score = null, limit = null, level = "unknown" } = event
    Object.assign(record, { quality: score, qualityLimit: limit, qualityLevel: level })
  } else if (kind.startsWith("poll_")) notePoll(record, event, now)
  else if (kind === "signed_out" || kind === "refused" || kind === "stop") record.pollReason = event.reason ?? null
  else if (kind.startsWith("ws_")) noteWebSocket(record, event, now)
  else if (kind === "cause" && record.ws === "none" && record.wsReason === event.of) record.wsReason = event.reason
  if (kind === "online" || kind === "retry") {
    Object.assign(record, { penalty: 0, blame: 0, dampedUntil: 0, probeDelay: 0 })
  }
}

// The server asks for a pause: postpones all timers that would dial earlier.
function noteAdvice(record, until) {
  const { timers } = record
  record.notBefore = Math.max(record.notBefore, until)
  delete timers.head_start // no second transport joins the race
  for (const name of ["retry", "probe", "poll"]) if (name in timers) timers[name] = Math.max(record.notBefore, timers[name])
}

function noteSilence(record) {
  if (record.ws === "opening") record.wsReason = "upgrade-hung"
  if (record.ws === "ready") record.wsReason = "mute"
  if (record.poll === "trying") record.pollReason = "server-unreachable"
}

function notePoll(record, event, now) {
  if (event.type === "poll_answered") {
    Object.assign(record, { poll: "up", pollFailures: 0, quickUsed: false, pollReason: null })
    charge(record, now)
    if (record.suspicion?.flowsAt === null) record.suspicion = { ...record.suspicion, flowsAt: now }
    if (record.ws === "none") foretell(record, "confirmed", 0) // the socket was given up before the poll came through
  } else if (event.type === "poll_failed") {
    const quick = Boolean(event.quick) && !record.quickUsed
    record.poll = "failed"
    record.quickUsed = record.quickUsed || quick
    record.pollFailures += quick ? 0 : 1
    record.pollReason = event.reason ?? null
  }
}

function foretell(record, outcome, lead) {
  const suspicion = record.suspicion
  record.suspicion = null
  if (suspicion) record.foretold = { trigger: suspicion.trigger, outcome, lead }
}

function noteWebSocket(record, event, now) {
  const kind = event.type
  if (kind === "ws_closed") {
    const was = record.ws
    record.ws = "none"
    record.wsReason = isRestarting(record) && was === "opening" ? record.wsReason : event.reason ?? null
    if (["ready", "up", "suspect"].includes(was)) noteEnd(record, event, now)
    const flowsAt = record.suspicion?.flowsAt ?? null
    if (was === "suspect" && flowsAt !== null) foretell(record, "confirmed", now - flowsAt)
  } else if (kind === "ws_ready") {
    record.ws = "ready"
    record.wsSince = now
    charge(record, now)
    foretell(record, "confirmed", 0)
  } else if (kind === "ws_suspect") {
    record.ws = "suspect"
    const polls = mayPollBeside(record, now)
    record.suspicion = { trigger: event.trigger ?? "echo", at: now, flowsAt: null, polls }
  } else if (kind === "ws_recovered" || kind === "ws_proved") {
    record.ws = "up"
    if (kind === "ws_recovered") foretell(record, "averted", null)
  }
}

// If the server is slow, all clients suspect: one beyond its budget polls only if its socket is dead.
function mayPollBeside(record, now) {
  record.budget = Math.min(BUDGET, record.budget + now - record.budgetAt)
  record.budgetAt = now
  if (record.budget < POLL_COST) return false
  record.budget -= POLL_COST
  return true
}

// The event's name in the table: each outcome of a guard is a separate event.
function nameOf(record, event, { now, config }) {
  const kind = event.type
  const state = record.status
  if (state === "disconnected" && (kind === "start" || kind === "retry")) {
    if (!allows(config, "websocket")) return "start_polling"
    return config.is_doubtful && allows(config, "polling") ? "start_doubtful" : "start"
  }
  const carried = state === "connected" || (state === "polling" && record.poll === "up")
  if (["wake", "online", "retry"].includes(kind) && record.notBefore > now && !carried) return "too_soon"
  if (state === "connected" && kind === "ws_suspect") return record.suspicion.polls ? kind : "ws_suspect_over_budget"
  if (state === "connected" && kind === "ws_closed") {
    if (record.poll === "up") return "ws_lost_poll_up"
    return event.advice_ms > 0 ? "ws_lost_advised" : "ws_lost"
  }
  if (state === "polling") return nameInPolling(record, kind, config)
  if (["connecting", "reconnecting", "error"].includes(state)) return nameInRace(record, kind, config, now)
  return kind
}

function nameInPolling(record, kind, config) {
  if (kind === "ws_closed" || kind === "attempt_over") return "probe_failed"
  if (kind === "poll_failed" && record.pollFailures > config.poll_retries) {
    return record.ws === "ready" ? "polls_exhausted_ws_ready" : "polls_exhausted"
  }
  return kind
}

function nameInRace(record, kind, config, now) {
  const opening = record.ws === "opening" || record.ws === "ready"
  const polls = allows(config, "polling")
  if (kind === "poll_answered") return opening ? kind : "poll_answered_alone"
  if (kind === "ws_ready" && proof(record, now) > 0 && polls) return "ws_unproved"
  if (!["ws_closed", "poll_failed", "attempt_over"].includes(kind)) return kind
  const hope = opening || record.poll === "trying" || ("head_start" in record.timers && polls)
  if (kind === "attempt_over" || ("attempt" in record.timers && !hope)) {
    const usedUp = record.status === "reconnecting" && record.reconnectAttempts >= config.max_attempts
    return usedUp ? "attempts_exhausted" : "attempt_failed"
  }
  return kind === "ws_closed" ? "ws_refused" : kind
}

// The effect of an action on the record. → false if the action is to be dropped
function apply(record, action, world) {
  const { config } = world
  if (action.startsWith("await_") || action.startsWith("hasten_")) return setTimer(record, action, world)
  if (action === "clear_timers") record.timers = {}
  else if (action === "clear_waits") {
    record.timers = "attempt" in record.timers ? { attempt: record.timers.attempt } : {}
  } else if (action === "count_attempt") record.reconnectAttempts += record.offline ? 0 : 1
  else if (action === "open_websocket") return !isDamped(record, world) && openWebSocket(record, world)
  else if (action === "start_poll") {
    delete record.timers.head_start
    return open(record, "poll", "trying", "polling", config)
  } else if (action === "forget_blame") {
    record.blame = 0
    foretell(record, "both-failed", null)
    record.wsReason = allows(config, "polling") && !isRestarting(record) ? null : record.wsReason
  } else if (action === "close_websocket") record.ws = "none"
  else if (action === "restart_poll") record.poll = "trying"
  else if (action === "stop_poll") Object.assign(record, { poll: "none", pollFailures: 0, quickUsed: false })
  return true
}

function open(record, field, value, transport, config) {
  if (!allows(config, transport) || !["none", "failed"].includes(record[field])) return false
  record[field] = value
  return true
}

function openWebSocket(record, { now, config }) {
  if (record.ws === "none") record.wsTriedAt = now
  return open(record, "ws", "opening", "websocket", config)
}

// Damped: not even in a race, unless polls do not work either.
function isDamped(record, { now, config }) {
  return now < record.dampedUntil && allows(config, "polling") && !pollsFail(record)
}

const pollsFail = (record) =>
  record.pollFailures > 0 || record.quickUsed || record.reconnectAttempts > 1 || record.status === "error"

// The server's advice overrides every shorter delay.
function setTimer(record, action, { now, config, random }) {
  const timers = record.timers
  const floor = record.notBefore
  if (action === "await_head_start") timers.head_start = now + headStart(config.latency_ms ?? 0)
  else if (action === "await_attempt") timers.attempt = now + 4000
  else if (action === "await_proof") timers.attempt = now + 4000 + proof(record, now)
  else if (action === "await_retry") {
    const attempts = Math.max(record.reconnectAttempts, record.offline ? OFFLINE_ATTEMPTS : 0)
    timers.retry = Math.max(floor, now + retryDelay(attempts, config, random))
  } else if (action === "await_slow_retry") {
    timers.retry = Math.max(floor, now + slowRetryDelay(record.slowRetries, record.activity, config, random))
    record.slowRetries += 1
  } else if (action === "await_poll") {
    timers.poll = Math.max(floor, now + pollRetryDelay(record.pollFailures, config, random))
  } else if (!allows(config, "websocket")) return false
  else if (action === "await_probe") awaitProbe(record, now, random)
  else if (record.ws === "none") { // hasten_probe, hasten_return
    const at = now + Math.floor(action === "hasten_probe" ? 300 * random() : PROBE_CAP[record.activity])
    timers.probe = Math.max(floor, pollsFail(record) ? 0 : record.dampedUntil, Math.min(timers.probe ?? at, at))
  }
  return true
}

// The cap is from the start of one probe to the next: one that hangs uses up time.
function awaitProbe(record, now, random) {
  delete record.timers.attempt
  const hung = record.probeDelay ? now - record.wsTriedAt : 0
  record.probeDelay = probeDelay(record.probeDelay, record.activity, random)
  const left = Math.max(1000, PROBE_CAP[record.activity] - hung)
  record.timers.probe = Math.max(record.notBefore, record.dampedUntil, now + Math.min(record.probeDelay, left))
}

function settle(record, before, { now, config }) {
  const state = record.status
  if (state !== before && (isConnected(state) || isConnected(before))) {
    Object.assign(record, { lastConnected: now, reconnectAttempts: 0, slowRetries: 0 })
  }
  if (state !== before && state === "connected") {
    Object.assign(record, { ws: "up", wsReason: null, pollReason: null, probeDelay: 0 })
  }
  if (isConnected(state)) record.connectionType = state === "connected" ? "websocket" : "polling"
  record.nextRetryAt = record.timers.retry ?? null
  if (state === "polling" && record.pollFailures > 0) record.nextRetryAt = record.timers.poll ?? null
  record.reason = reasonOf(record, config)
}

// The server announced a restart: the reason until it is back, or the attempts are used up.
const isRestarting = ({ status, wsReason, pollReason }) =>
  status === "reconnecting" && wsReason === "server-restart" && [null, "server-unreachable"].includes(pollReason)

function reasonOf(record, config) {
  if (record.status === "connecting" || record.status === "connected") return null
  if (record.status === "disconnected") return record.pollReason
  if (record.offline) return "offline"
  if (record.status === "polling" && !allows(config, "websocket")) return record.pollReason || "websocket-off"
  if (isRestarting(record)) return "server-restart"
  if (record.status === "polling") return PAUSES.includes(record.pollReason) ? record.pollReason : record.wsReason
  return record.pollReason || record.wsReason
}
