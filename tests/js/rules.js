// What tests/test_shipped.py asks of the shipped modules, in QuickJS: each function takes and gives plain data.

import { proxyOf, outcome, verdict } from "../../static/js/check/verdicts.js"
import {
  dampedFor, decayed, headStart, penaltyOf, pollRetryDelay, probeDelay, proofMs, retryDelay, rttEstimate, slowRetryDelay,
} from "../../static/js/connection/delays.js"
import { Quality } from "../../static/js/connection/quality.js"
import { isConnected, newRecord, step } from "../../static/js/connection/states.js"
import { noteNetwork, trust } from "../../static/js/connection/memory.js"
import { Detector } from "../../static/js/connection/detector.js"
import { Pacing } from "../../static/js/connection/pacing.js"

const camel = (name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase())
const DELAYS = {
  dampedFor, decayed, headStart, penaltyOf, pollRetryDelay, probeDelay, proofMs, retryDelay, slowRetryDelay,
}

// → [{actions, record}] after each step
export function states(table, { config, random, steps }) {
  let next = 0
  let record = newRecord(config)
  return steps.map(({ event, at }) => {
    const [after, actions] = step(table, record, event, at, config, () => random[next++ % random.length])
    record = after
    return { actions, record }
  })
}

// The same along a walk: a step comes `after` so many ms, or when the first timer is due ("due"). → [{at, actions, record}]
export function walk(table, { config, random, steps }) {
  let [next, at, record] = [0, 0, newRecord(config)]
  return steps.map(({ event, after }) => {
    const due = Math.min(...Object.values(record.timers))
    at = after !== "due" ? at + after : Number.isFinite(due) ? due : at
    const [then, actions] = step(table, record, event, at, config, () => random[next++ % random.length])
    record = then
    return { at, actions, record }
  })
}

export const fresh = (config) => newRecord(config)

export const delay = (name, given, random) => DELAYS[camel(name)](...given, ...(random === null ? [] : [() => random]))

export function roundTrips(samples) {
  let estimate = null
  return samples.map((sample) => estimate = rttEstimate(estimate, sample))
}

export const connected = (names) => names.filter(isConnected)

export function detector({ heartbeat, triggers, kill_gap: killGap, first_activity: first, steps }) {
  const one = new Detector(0, { heartbeat, triggers, killGap })
  let activity = first
  return steps.map(({ at, do: verb, arguments: given }) => {
    let result = null
    if (verb === "activity") [activity] = given
    else if (verb === "tick") {
      result = one.tick(at, activity)
      for (const what of result) if (what === "echo") one.ask(at)
    } else if (verb === "echoed") result = one.echoed(given[0], at, given[1])
    else if (verb === "ask" || verb === "heard") result = one[verb](at, ...given)
    else one[verb](...given, at)
    return { result: result ?? null, due: one.due(activity), suspicion: one.suspicion }
  })
}

export function pacing({ poll_ms: pollMs, hold_ms: holdMs, steps }) {
  const one = new Pacing(pollMs, holdMs)
  return steps.map(({ do: verb, arguments: given }) => ({ result: one[camel(verb)](...given) ?? null, why: one.why }))
}

export function quality({ steps }) {
  const one = new Quality()
  return steps.map(({ do: verb, arguments: given }) => one[verb](...given) ?? null)
}

export function memory({ steps }) {
  const networks = {}
  return steps.map(({ key, now, has_worked: hasWorked, kill_gap: killGap }) => {
    noteNetwork(networks, key, now, hasWorked, killGap)
    return { entry: { ...networks[key] }, count: Object.keys(networks).length, trust: trust(networks[key], now) }
  })
}

export const judge = (table, { probe, facts }) => outcome(table, probe, facts)

export const judged = (table, outcomes) => verdict(table, outcomes)

export const proxy = (table, headers) => proxyOf(table, headers)
