// A mark that cannot be fetched: at which seconds it is asked for. The network and the clock are the test's.

import { Cause } from "../../static/js/transports/cause.js"

const POLLING = { status: "polling", ws: "none", wsReason: "upgrade-failed" }
let now = 0
let asked = []
let found = 0

Object.assign(globalThis, {
  location: { origin: "http://127.0.0.1" },
  performance: { timeOrigin: 0, now: () => now },
  setTimeout: () => 0,
  clearTimeout: () => {},
  AbortController: class { abort() {} },
  URLSearchParams: class {},
  fetch: async () => {
    asked.push(now / 1000)
    throw new TypeError("unreachable")
  },
})

const cause = new Cause({ mark_url: "/mark", drill_ms: 0 }, () => found += 1)

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
