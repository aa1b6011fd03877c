// Reports of connection events to the server: numbered by the page and kept until acknowledged, so none is lost and
// repeats are harmless. The next page sends those that a closed page left behind.

import { storedKeys } from "./older.js"

const MOST_REPORTS = 200 // of one page, while the server is unreachable
const MOST_AT_ONCE = 50
const LONGEST_PAUSE = 600000 // ms; limit of a Retry-After
const MOST_ERRORS = 10 // of one page

export class Reports {
  #key; #prefix; #client; #url; #canSend; #kept = []; #number = 0; #timer = null; #notBefore = 0
  onEnd = () => {} // before the last of them are sent

  constructor(prefix, client, url, canSend) {
    this.#prefix = `${prefix}:reports:`
    this.#key = this.#prefix + client
    this.#client = client
    this.#url = url
    this.#canSend = canSend
    addEventListener("pagehide", () => {
      this.onEnd()
      navigator.sendBeacon?.(this.#url, this.#body(this.#kept.slice(-MOST_AT_ONCE)))
    })
    let left = MOST_ERRORS
    const fail = (error, at) => { // the server keeps the place in a script, and leaves out quoted text
      const cut = (text, most) => `${text}`.slice(0, most)
      if (left-- > 0) this.add({ type: "error", data: { message: cut(error?.message ?? error, 200), at: cut(at, 500) } })
    }
    addEventListener("error", (event) => fail(event, `${event.filename}:${event.lineno}`))
    addEventListener("unhandledrejection", ({ reason }) => fail(reason, reason?.stack))
  }

  add(report) {
    this.#number += 1
    this.#kept.push({ client: this.#client, number: this.#number, at: Date.now(), ...report })
    this.#kept.splice(0, this.#kept.length - MOST_REPORTS)
    this.#store(this.#key, this.#kept)
    this.#schedule(2000)
  }

  #schedule(ms) { this.#timer ??= setTimeout(() => this.#send(), ms) }

  async #send() {
    this.#timer = null
    const pause = this.#notBefore - Date.now()
    if (pause > 0) this.#schedule(Math.min(pause, LONGEST_PAUSE))
    if (pause > 0 || !this.#canSend()) return // the next report sends them
    for (const key of storedKeys(this.#prefix)) {
      const isOwn = key === this.#key
      const kept = isOwn ? this.#kept : this.#read(key)
      const batch = kept.slice(0, MOST_AT_ONCE)
      if (!await this.#post(batch)) return
      const rest = (isOwn ? this.#kept : kept).filter((report) => !batch.includes(report))
      if (isOwn) this.#kept = rest
      this.#store(key, rest)
    }
    if (this.#kept.length) this.#schedule(2000)
  }

  // True if the server has stored them, or will never accept them.
  async #post(batch) {
    if (!batch.length) return true
    try {
      const headers = { Accept: "application/json" }
      const response = await fetch(this.#url, { method: "POST", body: this.#body(batch), headers })
      if (response.ok || response.status === 413) return true
      if (response.status === 429) this.#notBefore = Date.now() + 1000 * (Number(response.headers.get("Retry-After")) || 60)
      return response.status === 400 && (await response.json()).error?.code === "bad-events"
    } catch { return false }
  }

  #body(batch) {
    const token = document.querySelector('meta[name="csrf-token"]')?.content ?? ""
    return new URLSearchParams({ csrf_token: token, events: JSON.stringify(batch), now: Date.now() })
  }

  #read(key) {
    try { return JSON.parse(localStorage.getItem(key)) ?? [] } catch { return [] }
  }

  #store(key, reports) {
    try {
      if (reports.length) localStorage.setItem(key, JSON.stringify(reports))
      else localStorage.removeItem(key)
    } catch { /* full: kept in memory only */ }
  }
}
