// The state machine's interpreter: the table comes with the page (chatapp/connection/states.py), the rules are the same
// there and here, and tests/vectors/states.json runs in both. No I/O, no clock: what happened and when goes in, a new
// record and the names of actions come out. Times and delays are milliseconds; `random` returns a value in [0, 1).

export const isConnected = (status) => status === "connected" || status === "polling"

// --- delays (chatapp/connection/delays.py) ---

export const headStart = (latency) => Math.floor(Math.min(700, Math.max(300, 2 * latency + 250)))

export function retryDelay(attempts, config, random) {
  if (attempts === 0) return Math.floor(300 * random())
  const ceiling = Math.min(config.reconnect_ms, 500 * 2 ** Math.min(attempts - 1, 20))
  return Math.floor(ceiling * (1 - 0.25 * random()))
}

export function slowRetryDelay(times, config, random) {
  const ceiling = config.reconnect_ms * Math.min(12, 6 * 1.5 ** Math.min(times, 20))
  return Math.floor(ceiling * (1 - 0.25 * random()))
}

export function probeDelay(previous, hidden, random) {
  if (previous === 0) return Math.floor(1000 + 2000 * random())
  return Math.floor(Math.min(hidden ? 60000 : 10000, 1000 + random() * (3 * previous - 1000)))
}

export function pollRetryDelay(failures, config, random) {
  if (failures === 0) return Math.floor(300 * random())
  const base = config.poll_ms * config.poll_backoff ** Math.min(failures - 1, 20)
  return Math.floor(base * (0.95 + 0.1 * random()))
}

export const proofMs = (shortLives) => shortLives === 0 ? 0 : Math.min(4000, 500 * 2 ** Math.min(shortLives, 5))

// RFC 6298: smoothed round trip, deviation, and the time-out of it, clamped to 1-6 s.
export function rttEstimate(previous, sample) {
  let srtt = sample
  let rttvar = sample / 2
  if (previous) {
    rttvar = 0.75 * previous.rttvar + 0.25 * Math.abs(previous.srtt - sample)
    srtt = 0.875 * previous.srtt + 0.125 * sample
  }
  return { srtt, rttvar, rto: Math.min(6000, Math.max(1000, srtt + Math.max(100, 4 * rttvar))) }
}

// --- the interpreter ---

export function newRecord(config) {
  return {
    status: "disconnected", lastConnected: null, reconnectAttempts: 0, connectionType: config.transports[0],
    reason: null, rtt: null, quality: null, nextRetryAt: null, queued: 0,
    ws: "none", poll: "none", wsReason: null, pollReason: null, pollFailures: 0, quickUsed: false, slowRetries: 0,
    probeDelay: 0, shortLives: 0, wsSince: 0, notBefore: 0, hidden: false, offline: false, timers: {},
  }
}

// `states` is what table_json() made: {states, timers, table}. Returns [record, actions].
export function step(states, record, event, now, config, random) {
  const after = { ...record, timers: { ...record.timers } }
  const world = { states, now, config, random }
  if (event.type !== "tick") return [after, take(after, event, world)]
  const actions = []
  for (const [timer, name] of Object.entries(states.timers)) {
    if ((after.timers[timer] ?? Infinity) > now) continue
    delete after.timers[timer]
    actions.push(...take(after, { type: name }, world))
  }
  return [after, actions]
}

// What a transport reports counts only where it can be true: reports of one that was closed meanwhile are stale.
const CREDIBLE = {
  ws_ready: ["ws", ["opening"]],
  ws_proved: ["ws", ["ready", "up"]],
  ws_suspect: ["ws", ["up"]],
  ws_recovered: ["ws", ["suspect"]],
  ws_closed: ["ws", ["opening", "ready", "up", "suspect"]],
  poll_answered: ["poll", ["trying", "up", "failed"]],
  poll_failed: ["poll", ["trying", "up", "failed"]],
}

function take(record, event, world) {
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
  if (event.advice_ms > 0) record.notBefore = Math.max(record.notBefore, now + event.advice_ms)
  if (kind === "hidden" || kind === "wake") record.hidden = kind === "hidden"
  else if (kind === "offline" || kind === "online") record.offline = kind === "offline"
  else if (kind.startsWith("poll_")) notePoll(record, event)
  else if (kind === "signed_out" || kind === "refused" || kind === "stop") record.pollReason = event.reason ?? null
  else if (kind.startsWith("ws_")) noteWebSocket(record, event, now)
  if (kind === "online" || kind === "retry") Object.assign(record, { shortLives: 0, probeDelay: 0 })
}

function noteSilence(record) {
  if (record.ws === "opening") record.wsReason = "upgrade-hung"
  if (record.ws === "ready") record.wsReason = "mute"
  if (record.poll === "trying") record.pollReason = "server-unreachable"
}

function notePoll(record, event) {
  if (event.type === "poll_answered") {
    Object.assign(record, { poll: "up", pollFailures: 0, quickUsed: false, pollReason: null })
  } else if (event.type === "poll_failed") {
    const quick = Boolean(event.quick) && !record.quickUsed
    record.poll = "failed"
    record.quickUsed = record.quickUsed || quick
    record.pollFailures += quick ? 0 : 1
    record.pollReason = event.reason ?? null
  }
}

function noteWebSocket(record, event, now) {
  const kind = event.type
  if (kind === "ws_closed") {
    if (["ready", "up", "suspect"].includes(record.ws)) noteLife(record, now - record.wsSince, "advice_ms" in event)
    record.ws = "none"
    record.wsReason = event.reason ?? null
  } else if (kind === "ws_ready") {
    record.ws = "ready"
    record.wsSince = now
  } else if (kind === "ws_suspect") record.ws = "suspect"
  else if (kind === "ws_recovered" || kind === "ws_proved") record.ws = "up"
}

// Sockets that die young make the next one prove itself for longer; a restart of the server is no such death.
function noteLife(record, lived, advised) {
  if (lived >= 60000) record.shortLives = 0
  else if (lived < 10000 && !advised) record.shortLives += 1
}

// The event's name in the table: where a guard decides, each outcome is an event of its own.
function nameOf(record, event, { now, config }) {
  const kind = event.type
  const state = record.status
  if (state === "disconnected" && (kind === "start" || kind === "retry")) {
    return config.transports.includes("websocket") ? "start" : "start_polling"
  }
  const carried = state === "connected" || (state === "polling" && record.poll === "up")
  if (["wake", "online", "retry"].includes(kind) && record.notBefore > now && !carried) return "too_soon"
  if (state === "connected" && kind === "ws_closed") {
    if (record.poll === "up") return "ws_lost_poll_up"
    return event.advice_ms > 0 ? "ws_lost_advised" : "ws_lost"
  }
  if (state === "polling") return nameInPolling(record, kind, config)
  if (["connecting", "reconnecting", "error"].includes(state)) return nameInRace(record, kind, config)
  return kind
}

function nameInPolling(record, kind, config) {
  if (kind === "ws_closed" || kind === "attempt_over") return "probe_failed"
  if (kind === "poll_failed" && record.pollFailures > config.poll_retries) {
    return record.ws === "ready" ? "polls_exhausted_ws_ready" : "polls_exhausted"
  }
  return kind
}

function nameInRace(record, kind, config) {
  const opening = record.ws === "opening" || record.ws === "ready"
  const polls = config.transports.includes("polling")
  if (kind === "poll_answered") return opening ? kind : "poll_answered_alone"
  if (kind === "ws_ready" && record.shortLives > 0 && polls) return "ws_unproved"
  if (!["ws_closed", "poll_failed", "attempt_over"].includes(kind)) return kind
  const hope = opening || record.poll === "trying" || ("head_start" in record.timers && polls)
  if (kind === "attempt_over" || ("attempt" in record.timers && !hope)) {
    const usedUp = record.status === "reconnecting" && record.reconnectAttempts >= config.max_attempts
    return usedUp ? "attempts_exhausted" : "attempt_failed"
  }
  return kind === "ws_closed" ? "ws_refused" : kind
}

// The part of an action that is state. False: nothing is left to do, and the action is dropped.
function apply(record, action, world) {
  const { config } = world
  if (action.startsWith("await_") || action.startsWith("hasten_")) return setTimer(record, action, world)
  if (action === "clear_timers") record.timers = {}
  else if (action === "clear_waits") {
    record.timers = "attempt" in record.timers ? { attempt: record.timers.attempt } : {}
  } else if (action === "count_attempt") record.reconnectAttempts += 1
  else if (action === "open_websocket") return open(record, "ws", "opening", "websocket", config)
  else if (action === "start_poll") {
    delete record.timers.head_start
    return open(record, "poll", "trying", "polling", config)
  } else if (action === "forget_blame") record.wsReason = config.transports.includes("polling") ? null : record.wsReason
  else if (action === "close_websocket") record.ws = "none"
  else if (action === "restart_poll") record.poll = "trying"
  else if (action === "stop_poll") Object.assign(record, { poll: "none", pollFailures: 0, quickUsed: false })
  return true
}

function open(record, field, value, transport, config) {
  if (!config.transports.includes(transport) || !["none", "failed"].includes(record[field])) return false
  record[field] = value
  return true
}

// The server's advice wins over every delay that dials again.
function setTimer(record, action, { now, config, random }) {
  const timers = record.timers
  const floor = record.notBefore
  if (action === "await_head_start") timers.head_start = now + headStart(config.latency_ms ?? 0)
  else if (action === "await_attempt") timers.attempt = now + 4000
  else if (action === "await_proof") timers.attempt = now + 4000 + proofMs(record.shortLives)
  else if (action === "await_retry") {
    timers.retry = Math.max(floor, now + retryDelay(record.reconnectAttempts, config, random))
  } else if (action === "await_slow_retry") {
    timers.retry = Math.max(floor, now + slowRetryDelay(record.slowRetries, config, random))
    record.slowRetries += 1
  } else if (action === "await_poll") {
    timers.poll = Math.max(floor, now + pollRetryDelay(record.pollFailures, config, random))
  } else if (!config.transports.includes("websocket")) return false
  else if (action === "await_probe") {
    delete timers.attempt
    record.probeDelay = probeDelay(record.probeDelay, record.hidden, random)
    timers.probe = Math.max(floor, now + record.probeDelay)
  } else if (record.ws === "none") { // hasten_probe
    timers.probe = Math.max(floor, Math.min(timers.probe ?? now + 300, now + Math.floor(300 * random())))
  }
  return true
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

function reasonOf(record, config) {
  if (record.status === "connecting" || record.status === "connected") return null
  if (record.status === "disconnected") return record.pollReason
  if (record.offline) return "offline"
  if (record.status === "polling" && !config.transports.includes("websocket")) return record.pollReason || "websocket-off"
  if (record.status === "polling") return record.pollReason === "rate-limited" ? "rate-limited" : record.wsReason
  return record.pollReason || record.wsReason
}
