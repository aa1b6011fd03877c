// The outbox: what was written waits here, durably, until the server acknowledges it. Each entry is one item of
// localStorage (memory where that fails). One entry of a conversation is in flight at a time, so order is kept; the
// server knows each by its id, so sending one twice is harmless.

const RETRIES = [500, 1000, 2000, 4000, 5000]
const MOST_REPORTS = 200 // of one page, kept while the server is out of reach
const MOST_AT_ONCE = 50
const LONGEST_PAUSE = 600000 // of reports, asked for by the server

// crypto.randomUUID is missing on plain http hosts.
export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID()
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  bytes[6] = (bytes[6] & 0x0f) | 0x40
  bytes[8] = (bytes[8] & 0x3f) | 0x80
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("")
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-")
}

export class Outbox {
  #prefix; #deliver; #entries = new Map(); #busy = new Set(); #waits = new Map(); #isOpen = false
  onChange = () => {} // (entry, what): added, sending, waiting, sent (with entry.ack), failed, removed

  // prefix: of the storage keys; deliver(entry) → outcome (see connection.js)
  constructor(prefix, deliver) {
    this.#prefix = `${prefix}:outbox:`
    this.#deliver = deliver
    addEventListener("storage", (event) => this.#onStorage(event))
  }

  // Take up what this person's earlier pages left behind, whatever conversation it is for.
  load() {
    for (const key of storedKeys(this.#prefix)) {
      try {
        const entry = JSON.parse(localStorage.getItem(key))
        if (entry?.id && entry.conversation && typeof entry.body === "string") this.#entries.set(entry.id, entry)
      } catch (error) { console.error(error) }
    }
    this.#entries = new Map([...this.#entries].sort(([, a], [, b]) => a.at - b.at || a.order - b.order))
  }

  show() { for (const entry of this.#entries.values()) this.#tell(entry, "added") }

  // The conversation that waits to be made with its first message: what an unsaved page was before it was reloaded.
  get unmade() { return [...this.#entries.values()].findLast((entry) => entry.create)?.conversation }

  get size() { return [...this.#entries.values()].filter((entry) => !entry.failed).length }

  of(conversation) { return [...this.#entries.values()].filter((entry) => entry.conversation === conversation) }

  get(id) { return this.#entries.get(id) }

  add(conversation, body, { create = false, id = uuid() } = {}) {
    const entry = { id, conversation, body, create, at: Date.now(), order: this.#entries.size, tries: 0 }
    this.#entries.set(entry.id, entry)
    this.#store(entry)
    this.#tell(entry, "added")
    this.pump(conversation)
    return entry
  }

  // Opened while messages flow; closing lets what is in flight land.
  setOpen(isOpen) {
    const opened = isOpen && !this.#isOpen
    this.#isOpen = isOpen
    if (opened) this.flush()
  }

  flush() {
    for (const timer of this.#waits.values()) clearTimeout(timer)
    this.#waits.clear()
    for (const conversation of new Set([...this.#entries.values()].map((entry) => entry.conversation))) {
      this.pump(conversation)
    }
  }

  retry(id) {
    const entry = this.#entries.get(id)
    if (!entry) return
    entry.failed = null
    this.#store(entry)
    this.#tell(entry, "waiting")
    this.pump(entry.conversation)
  }

  discard(id) {
    const entry = this.#entries.get(id)
    if (entry) this.#remove(entry, "removed")
  }

  // A conversation is gone: what waits for it fails, in plain words, and stays to be copied.
  failAll(conversation, code) {
    for (const entry of this.of(conversation)) if (!entry.failed) this.#fail(entry, { refused: code })
  }

  // An acknowledgement or refusal, also one that comes after its flight had ended.
  settled(id, outcome) {
    const entry = this.#entries.get(id)
    if (!entry) return
    if (outcome.ok) {
      entry.ack = outcome.ack
      for (const other of this.of(entry.conversation)) {
        if (other.create && other !== entry) this.#store(Object.assign(other, { create: false }))
      }
      this.#remove(entry, "sent")
    } else if (outcome.refused) this.#fail(entry, outcome)
    else this.#tell(entry, "waiting")
  }

  async pump(conversation) {
    if (!this.#isOpen || this.#busy.has(conversation) || this.#waits.has(conversation)) return
    const entry = this.of(conversation).find((one) => !one.failed)
    if (!entry) return
    this.#busy.add(conversation)
    this.#tell(entry, "sending")
    let outcome
    try {
      outcome = await this.#deliver(entry)
    } catch (error) {
      console.error(error)
      outcome = { retry: "error" }
    }
    this.#busy.delete(conversation)
    this.settled(entry.id, outcome)
    if (!outcome.retry) return this.pump(conversation)
    if (this.#entries.has(entry.id)) this.#wait(entry, outcome.advice_ms ?? 0)
    else this.pump(conversation)
  }

  #wait(entry, advice) {
    const base = RETRIES[Math.min(entry.tries, RETRIES.length - 1)]
    entry.tries += 1
    this.#waits.set(entry.conversation, setTimeout(() => {
      this.#waits.delete(entry.conversation)
      this.pump(entry.conversation)
    }, Math.max(advice, base * (0.75 + 0.5 * Math.random()))))
  }

  #fail(entry, outcome) {
    entry.failed = { code: outcome.refused, words: outcome.words ?? "" }
    this.#store(entry)
    this.#tell(entry, "failed")
  }

  #store(entry) {
    try {
      localStorage.setItem(this.#prefix + entry.id, JSON.stringify(entry))
    } catch (error) { console.error("outbox: kept in memory only", error) }
  }

  #remove(entry, what) {
    this.#entries.delete(entry.id)
    try { localStorage.removeItem(this.#prefix + entry.id) } catch (error) { console.error(error) }
    this.#tell(entry, what)
  }

  #tell(entry, what) {
    try { this.onChange(entry, what) } catch (error) { console.error(error) }
  }

  // Another tab settled or discarded an entry that this one took up too.
  #onStorage(event) {
    if (event.newValue !== null || !event.key?.startsWith(this.#prefix)) return
    const entry = this.#entries.get(event.key.slice(this.#prefix.length))
    if (!entry || this.#busy.has(entry.conversation)) return
    this.#entries.delete(entry.id)
    this.#tell(entry, "removed")
  }
}

// Reports of what the page's connection went through: numbered by the page, kept until the server has them, so that
// none is lost and a repeated one changes nothing. Those of closed pages go along with the next page's.
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

function storedKeys(prefix) {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(prefix))
  } catch (error) {
    console.error(error)
    return []
  }
}
