// A mark that cannot be fetched: at which seconds it is asked for. The world is the test's.

import { Cause } from "../../static/js/connection/cause.js"

const POLLING = { status: "polling", ws: "none", wsReason: "upgrade-failed" }
let now = 0
let asked = []
let found = 0

const world = {
  origin: "http://127.0.0.1",
  now: () => now,
  random: Math.random,
  ask: async () => {
    asked.push(now / 1000)
    throw new TypeError("unreachable")
  },
}

const cause = new Cause({ mark_url: "/mark", drill_ms: 0 }, world, () => found += 1)

// Each second of this many; then once more after a press.
export function explain(seconds) {
  const all = async () => {
    for (; now < 1000 * seconds; now += 1000) await cause.explain(POLLING)
    cause.forget()
    await cause.explain(POLLING)
  }
  all()
  return null
}

export const outcome = () => ({ asked, found })
