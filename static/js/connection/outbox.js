// The outbox: what was written waits here until the server acknowledges it. Each entry is a row of the browser's storage;
// where that fails it is kept in memory, and the page says so. One entry of a conversation is in flight at a time, so order
// is kept; the server knows each by its id, so sending one twice is harmless.

const RETRIES = [500, 1000, 2000, 4000, 5000]
const PATIENCE = 1000 // ms for the storage: a message does not wait longer for it

// Why a write failed, as the page words it.
export const problemOf = (error) => error?.name === "QuotaExceededError" ? "full" : "refused"

// An entry: {id, conversation, body, create, at, seq, failed, storage}. seq is given by the storage and says the order;
// storage says whether it is kept: "storing", "stored", or why it is not ("full", "refused", "slow").
export class Outbox {
  #world; #storage; #older; #deliver; #entries = new Map(); #writes = new Map(); #settled = new Set()
  #busy = new Set(); #waits = new Map(); #isOpen = false; #isLoaded = false; #isShown = false
  // (entry, what): added, stored (or why not), sending, waiting, sent (with entry.ack), failed, removed. → a promise:
  // what is to be done before the entry's row goes; where it rejects the row stays
  onChange = () => {}

  onUnkept = () => {} // (what, why): cannot be stored ("full", "refused", "slow"), or is stored or needed no more (null)

  // storage: {rows, write, tell, listen} (browser/storage.js); older: {take() → {entries, moved}, forget(id)}, what
  // older versions kept elsewhere; deliver(entry) → outcome (see connection.js)
  constructor(world, storage, older, deliver) {
    this.#world = world
    this.#storage = storage
    this.#older = older
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
  add(id, conversation, body, { create = false, beside = [] } = {}) {
    const entry = { id, conversation, body, create, at: this.#world.wall(), tries: 0, storage: "storing" }
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
    for (const timer of this.#waits.values()) this.#world.cancel(timer)
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
    this.#waits.set(entry.conversation, this.#world.later(() => {
      this.#waits.delete(entry.conversation)
      this.pump(entry.conversation)
    }, Math.max(advice, base * (0.75 + 0.5 * this.#world.random()))))
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
    const older = this.#older.take()
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
    return { seq: low + (all[to].seq - low) * (here - from - 0.75 + 0.5 * this.#world.random()) / (to - from - 1) }
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
    const late = this.#world.later(() => this.#onStored(entry, "slow"), PATIENCE)
    try {
      const [seq] = await this.#storage.write([["outbox", "put", { ...row, ...this.#gapOf(entry) }], ...beside])
      entry.seq = seq
      this.#onStored(entry, "stored")
    } catch (error) {
      console.error("outbox: kept in memory only", error)
      if (!entry.seq) this.#onStored(entry, problemOf(error)) // else what is stored has its text
    } finally { this.#world.cancel(late) }
  }

  #onStored(entry, storage) {
    if (!this.#entries.has(entry.id) || entry.seq && storage === "slow") return
    entry.storage = storage
    this.onUnkept(entry.id, storage === "stored" ? null : storage)
    this.#tell(entry, "stored")
    this.pump(entry.conversation)
  }

  #remove(entry, what) {
    this.#entries.delete(entry.id)
    this.#settled.add(entry.id)
    this.onUnkept(entry.id, null)
    this.#erase(entry, this.#tell(entry, what))
  }

  // Where that fails, the next page sends it once more, and the server knows it.
  async #erase(entry, before) {
    this.#older.forget(entry.id)
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
    this.onUnkept(id, null)
    this.#tell(entry, "removed")
  }
}
