// Reports of what the page's connection went through: numbered by the page, kept until the server has them, so that
// none is lost and a repeated one changes nothing. Those of closed pages go along with the next page's.

import { storedKeys } from "./older.js"

const MOST_REPORTS = 200 // of one page, kept while the server is out of reach
const MOST_AT_ONCE = 50
const LONGEST_PAUSE = 600000 // asked for by the server

export class Reports {
  #key; #prefix; #client; #url; #canSend; #kept = []; #number = 0; #timer = null; #until = 0

  constructor(prefix, client, url, canSend) {
    this.#prefix = `${prefix}:reports:`
    this.#key = this.#prefix + client
    this.#client = client
    this.#url = url
    this.#canSend = canSend
    addEventListener("pagehide", () => navigator.sendBeacon?.(this.#url, this.#body(this.#kept.slice(-MOST_AT_ONCE))))
  }

  add(report) {
    this.#number += 1
    this.#kept.push({ client: this.#client, number: this.#number, at: Date.now(), ...report })
    this.#kept.splice(0, this.#kept.length - MOST_REPORTS)
    this.#store(this.#key, this.#kept)
    this.#timer ??= setTimeout(() => this.#send(), 2000)
  }

  async #send() {
    this.#timer = null
    const pause = this.#until - Date.now()
    if (pause > 0) this.#timer = setTimeout(() => this.#send(), Math.min(pause, LONGEST_PAUSE))
    if (pause > 0 || !this.#canSend()) return // the next transition brings them along
    for (const key of storedKeys(this.#prefix)) {
      const kept = key === this.#key ? this.#kept : this.#read(key)
      const batch = kept.slice(0, MOST_AT_ONCE)
      if (!await this.#post(batch)) return
      const left = (key === this.#key ? this.#kept : kept).filter((report) => !batch.includes(report))
      if (key === this.#key) this.#kept = left
      this.#store(key, left)
    }
    if (this.#kept.length) this.#timer ??= setTimeout(() => this.#send(), 2000)
  }

  // True where the server has them, or will never want them.
  async #post(batch) {
    if (!batch.length) return true
    try {
      const headers = { Accept: "application/json" }
      const response = await fetch(this.#url, { method: "POST", body: this.#body(batch), headers })
      if (response.ok || response.status === 413) return true
      if (response.status === 429) this.#until = Date.now() + 1000 * (Number(response.headers.get("Retry-After")) || 60)
      return response.status === 400 && (await response.json()).error?.code === "bad-events"
    } catch { return false }
  }

  #body(batch) {
    const token = document.querySelector('meta[name="csrf-token"]')?.content ?? ""
    return new URLSearchParams({ csrf_token: token, events: JSON.stringify(batch) })
  }

  #read(key) {
    try { return JSON.parse(localStorage.getItem(key)) ?? [] } catch { return [] }
  }

  #store(key, reports) {
    try {
      if (reports.length) localStorage.setItem(key, JSON.stringify(reports))
      else localStorage.removeItem(key)
    } catch { /* full: they are kept in memory only */ }
  }
}
