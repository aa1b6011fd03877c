// What a page reports for the statistics, besides its states: each attempt to connect, and once a minute the messages that
// it sent and received. Durations are milliseconds.

import { isConnected } from "./states.js"

const MINUTE = 60000
const SIGN = 300000 // between two signs of life of a page that polls
const TRIES = [["ws", "websocket", "opening", ["ready", "up"]], ["poll", "polling", "trying", ["up"]]]
const FAILURES = ["ws_closed", "poll_failed", "tick", "refused"] // events; after all others an attempt was cancelled

// Of 64 bins, four to each doubling from 1 ms.
const binOf = (ms) => Math.min(63, Math.max(0, Math.round(4 * Math.log2(Math.max(1, ms)))))

export class Measures {
  #world; #report; #cursors; #attempts = {}; #repeats = {}; #minute = null; #status = ""; #timer = null

  // report(type, facts); cursors() → {feed: cursor}
  constructor(world, report, cursors) {
    this.#world = world
    this.#report = report
    this.#cursors = cursors
  }

  // before, after: records; type: of the event between them
  note(type, before, after, now) {
    for (const [field, transport, tried, ready] of TRIES) {
      if (before[field] === after[field]) continue
      const attempt = this.#attempts[field]
      delete this.#attempts[field]
      if (after[field] === tried) {
        this.#attempts[field] = { at: now, isProbe: isConnected(before.status) }
      } else if (attempt) this.#end(transport, attempt, ready.includes(after[field]) ? "ready" : FAILURES.includes(type) ? "failed" : "cancelled", after[`${field}Reason`], now)
    }
    this.#status = after.status
    if (this.#isPolling) this.#later(SIGN)
  }

  get #isPolling() { return this.#status === "polling" }

  // The same failure again and again is one report, with its number.
  #end(transport, { at, isProbe }, outcome, reason, now) {
    const ms = Math.round(now - at)
    const same = this.#repeats[transport]
    const isSame = outcome === "failed" && same?.reason === reason && now - same.at < MINUTE
    if (isSame) return same.n += 1
    this.#repeats[transport] = outcome === "failed" ? { reason, at: now, n: 1 } : null
    this.#report("attempt", { transport, reason: reason ?? null, data: { outcome, ms, ...(isProbe && { probe: 1 }), ...(same?.n > 1 && { before: same.n - 1 }) } })
  }

  // A message was acknowledged, after one transmission or several.
  sent(transport, ms, isRepeated) {
    const { sent } = this.#open()
    if (isRepeated) return this.#minute.repeated += 1
    const bins = sent[transport] ??= {}
    bins[binOf(ms)] = (bins[binOf(ms)] ?? 0) + 1
  }

  // Messages arrived: how many seconds after they were stored, by this device's clock, which the server corrects.
  received(feed) {
    const from = Number(feed.getAttribute("from"))
    for (const article of feed.children) {
      if (!(Number(article.getAttribute("data-position")) > from)) continue // a change of an older one
      const footer = [...article.children].find(({ localName }) => localName === "footer")
      const at = Date.parse([...footer?.children ?? []].find(({ localName }) => localName === "time")?.getAttribute("datetime"))
      if (!at) continue
      const { received } = this.#open()
      const s = Math.round((this.#world.wall() - at) / 1000)
      received[s] = (received[s] ?? 0) + 1
    }
  }

  // The page ends: what is not reported yet.
  close() { this.#flush() }

  #open() {
    this.#later(MINUTE)
    return this.#minute ??= { sent: {}, repeated: 0, received: {} }
  }

  #later(ms) { this.#timer ??= this.#world.later(() => this.#flush(), ms) }

  #flush() {
    this.#world.cancel(this.#timer)
    this.#timer = null
    const cursors = isConnected(this.#status) ? this.#cursors() : {} // else what is missing will come late
    if (this.#minute) this.#report("minute", { reason: null, data: { ...this.#minute, cursors } })
    else if (this.#isPolling) this.#report("alive", { reason: null })
    this.#minute = null
    if (this.#isPolling) this.#later(SIGN)
  }
}
