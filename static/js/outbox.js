// The outbox: what was written waits here until the server acknowledges it. Each entry is a row of the browser's storage;
// where that fails it is kept in memory, and the page says so. One entry of a conversation is in flight at a time, so order
// is kept; the server knows each by its id, so sending one twice is harmless.

import { forgetOlder, movedEntries, storedKeys } from "./storage/older.js"
import { problemOf } from "./storage/storage.js"
import { noteUnkept } from "./storage/unkept.js"

const RETRIES = [500, 1000, 2000, 4000, 5000]
const PATIENCE = 1000 // ms for the storage: a message does not wait longer for it
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

// An entry: {id, conversation, body, create, at, seq, failed, storage}. seq is given by the storage and says the order;
// storage says whether it is kept: "storing", "stored", or why it is not ("full", "refused", "slow").
export class Outbox {
  #storage; #prefix; #deliver; #entries = new Map(); #writes = new Map(); #settled = new Set()
  #busy = new Set(); #waits = new Map(); #isOpen = false; #isLoaded = false; #isShown = false
  // (entry, what): added, stored (or why not), sending, waiting, sent (with entry.ack), failed, removed. → a promise:
  // what is to be done before the entry's row goes; where it rejects the row stays
  onChange = () => {}

  // prefix: of what older versions kept in localStorage; deliver(entry) → outcome (see connection.js)
  constructor(storage, prefix, deliver) {
    this.#storage = storage
    this.#prefix = prefix
    this.#deliver = deliver
    storage.listen((message) => this.#onMessage(message))
  }

  // Take up what this person's earlier pages left behind, whatever conversation it is for.
  async load() {
    await this.#read()
    this.#isLoaded = true
    this.flush()
  }

  show() {
    this.#isShown = true
    for (const entry of this.#entries.values()) this.#tell(entry, "added")
  }

  // The conversation that waits to be made with its first message: what an unsaved page was before it was reloaded.
  get unmade() { return [...this.#entries.values()].findLast((entry) => entry.create)?.conversation }

  get size() { return [...this.#entries.values()].filter((entry) => !entry.failed).length }

  of(conversation) { return [...this.#entries.values()].filter((entry) => entry.conversation === conversation) }

  get(id) { return this.#entries.get(id) }

  // beside: operations that are written with it, all or none (the draft goes as the message comes)
  add(conversation, body, { create = false, id = uuid(), beside = [] } = {}) {
    const entry = { id, conversation, body, create, at: Date.now(), tries: 0, storage: "storing" }
    this.#entries.set(entry.id, entry)
    this.#tell(entry, "added")
    this.#store(entry, beside)
    return entry
  }

  // Opened while messages flow; closing lets what is in flight land. Another tab may have left something meanwhile, or an
  // earlier page something that could not be read until now: that goes first.
  setOpen(isOpen) {
    const opened = isOpen && !this.#isOpen
    this.#isOpen = isOpen
    if (!opened || !this.#isLoaded) return
    this.#isLoaded = false
    this.load()
  }

  flush() {
    for (const timer of this.#waits.values()) clearTimeout(timer)
    this.#waits.clear()
    for (const { conversation } of this.#entries.values()) this.pump(conversation)
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

  // No page shows it where it failed: its text becomes a draft, in the same write. Drafts come up the newest first, by
  // `turn`: these in their own order, after those that somebody is writing.
  async moveToDrafts(entry, conversation) {
    try {
      await this.#writes.get(entry.id)
      if (!this.#entries.has(entry.id)) return
      const row = { conversation, owner: entry.id, turn: -(entry.seq ?? 0), text: entry.body }
      const end = entry.seq ? [["outbox", "delete", entry.seq]] : []
      await this.#storage.write([["drafts", "put", row], ...end])
      this.#remove(entry, "removed")
      this.#storage.tell({ type: "draft", conversation, turn: row.turn })
    } catch (error) { console.error("it stays in the outbox", error) }
  }

  // What a conversation's entries say goes on elsewhere: take(operations) writes it there together with those that end
  // their rows. Where it rejects they stay.
  async handOver(conversation, take) {
    const entries = this.of(conversation)
    await Promise.all(entries.map(({ id }) => this.#writes.get(id)))
    await take(entries.filter(({ seq }) => seq).map(({ seq }) => ["outbox", "delete", seq]))
    for (const { id } of entries) this.discard(id)
  }

  // An acknowledgement or refusal, also one that comes after its flight had ended.
  settled(id, outcome) {
    const entry = this.#entries.get(id)
    if (!entry) return
    const all = this.of(entry.conversation)
    if (outcome.ok) {
      entry.ack = outcome.ack
      for (const one of all) if (one.create && one !== entry) this.#store(Object.assign(one, { create: false }))
      this.#remove(entry, "sent")
    } else if (outcome.refused) this.#fail(entry, outcome)
    else for (const one of all) if (!one.failed) this.#tell(one, "waiting", outcome.retry) // those behind it wait for the same
  }

  // One that is still being stored holds back those behind it.
  async pump(conversation) {
    if (!this.#isOpen || !this.#isLoaded || this.#busy.has(conversation) || this.#waits.has(conversation)) return
    const entry = this.of(conversation).find((one) => !one.failed)
    if (!entry || entry.storage === "storing") return
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
    if (outcome.retry && this.#entries.has(entry.id)) this.#wait(entry, outcome.advice_ms ?? 0)
    else this.pump(conversation)
  }

  #wait(entry, advice) {
    const base = RETRIES[entry.tries] ?? RETRIES.at(-1)
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

  #tell(entry, what, why) {
    try { return this.onChange(entry, what, why) } catch (error) { console.error(error) }
  }

  // --- the storage ---

  async #read() {
    const older = movedEntries(this.#storage, this.#prefix)
    try {
      await older.moved
      this.#takeUp(await this.#storage.rows("outbox"))
    } catch (error) {
      console.error("outbox: kept in memory only", error)
      this.#takeUp(older.entries)
    }
  }

  // In the order in which they were written. Two tabs may have moved the same one here from localStorage.
  #takeUp(rows) {
    const fresh = []
    const doubled = []
    for (const row of rows) {
      const known = this.#entries.get(row.id)
      if (known?.seq && known.seq !== row.seq) doubled.push(["outbox", "delete", Math.max(known.seq, row.seq)])
      if (known || this.#settled.has(row.id)) continue
      const entry = { ...row, tries: 0, storage: "stored" }
      this.#entries.set(row.id, entry)
      fresh.push(entry)
    }
    this.#sort(fresh)
    this.#storage.write(doubled).catch((error) => console.error(error))
    for (const entry of fresh) {
      if (this.#isShown) this.#tell(entry, "added")
      this.pump(entry.conversation)
    }
  }

  // One that is not stored stays before the next one of this page that is.
  #sort(fresh) {
    const places = new Map(fresh.map((entry) => [entry, entry.seq ?? 0]))
    let next = Number.MAX_SAFE_INTEGER
    for (const entry of [...this.#entries.values()].reverse()) {
      if (places.has(entry)) continue
      next = entry.seq ?? next
      places.set(entry, next)
    }
    this.#entries = new Map([...this.#entries].sort(([, one], [, other]) => places.get(one) - places.get(other)))
  }

  // A seq before those behind it that are stored already; none where there are none: then the storage gives the next.
  // At random within its part of the gap: another tab may be storing there, too.
  #gapOf(entry) {
    const all = [...this.#entries.values()]
    const here = all.indexOf(entry)
    const to = all.findIndex((one, index) => index > here && one.seq)
    if (entry.seq || to < 0) return {}
    const from = all.findLastIndex((one, index) => index < here && one.seq)
    const low = Math.max(all[to].seq - 1, all[from]?.seq ?? 0)
    return { seq: low + (all[to].seq - low) * (here - from - 0.75 + 0.5 * Math.random()) / (to - from - 1) }
  }

  // At once where nothing is being written of it: the page may be about to close.
  #store(entry, beside = []) {
    const before = this.#writes.get(entry.id)
    const end = before ? before.then(() => this.#write(entry, beside)) : this.#write(entry, beside)
    this.#writes.set(entry.id, end)
  }

  async #write(entry, beside) {
    if (!this.#entries.has(entry.id)) return
    const { storage, tries, ack, ...row } = entry
    const late = setTimeout(() => this.#onStored(entry, "slow"), PATIENCE)
    try {
      const [seq] = await this.#storage.write([["outbox", "put", { ...row, ...this.#gapOf(entry) }], ...beside])
      entry.seq = seq
      this.#onStored(entry, "stored")
    } catch (error) {
      console.error("outbox: kept in memory only", error)
      if (!entry.seq) this.#onStored(entry, problemOf(error)) // else what is stored has its text
    } finally { clearTimeout(late) }
  }

  #onStored(entry, storage) {
    if (!this.#entries.has(entry.id) || entry.seq && storage === "slow") return
    entry.storage = storage
    noteUnkept(entry.id, storage === "stored" ? null : storage)
    this.#tell(entry, "stored")
    this.pump(entry.conversation)
  }

  #remove(entry, what) {
    this.#entries.delete(entry.id)
    this.#settled.add(entry.id)
    noteUnkept(entry.id, null)
    this.#erase(entry, this.#tell(entry, what))
  }

  // Where that fails, the next page sends it once more, and the server knows it.
  async #erase(entry, before) {
    forgetOlder(this.#prefix, entry.id)
    try {
      await before
      await this.#writes.get(entry.id)
      this.#writes.delete(entry.id)
      if (entry.seq) await this.#storage.write([["outbox", "delete", entry.seq]], "relaxed")
      this.#storage.tell({ type: "settled", id: entry.id })
      for (const other of this.#entries.values()) if (!["storing", "stored"].includes(other.storage)) this.#store(other)
    } catch (error) { console.error(error) }
  }

  // Another tab settled or discarded an entry that this one took up too.
  #onMessage({ type, id }) {
    if (type === "missed" && this.#isLoaded) this.#read()
    if (type !== "settled") return
    const entry = this.#entries.get(id)
    if (!entry || this.#busy.has(entry.conversation)) return
    this.#entries.delete(id)
    this.#settled.add(id)
    noteUnkept(id, null)
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
