// The outbox: messages wait here until the server acknowledges them. Each entry is a row of the browser's storage; if
// that fails, it is kept in memory, and the page warns. One entry of a conversation is in flight at a time, which keeps
// the order; the server recognizes each by its id, so sending one twice is harmless.

const RETRIES = [500, 1000, 2000, 4000, 5000]
const PATIENCE = 1000 // ms; a message does not wait longer for the storage

// The key of the page's warning about a failed write.
export const problemOf = (error) => error?.name === "QuotaExceededError" ? "full" : "refused"

// An entry: {id, conversation, body, create, at, seq, failed, storage}. seq: the order, assigned by the storage;
// storage: "storing", "stored", or a problem ("full", "refused", "slow").
export class Outbox {
  #world; #storage; #older; #deliver; #entries = new Map(); #writes = new Map(); #settled = new Set()
  #busy = new Set(); #waits = new Map(); #isOpen = false; #isLoaded = false; #isShown = false
  // (entry, change, reason, advice_ms): added, stored (or not: see entry.storage), sending, waiting, sent (with entry.ack),
  // failed, removed. → a promise or undefined: the entry's row is deleted after it; if it rejects, the row stays
  onChange = () => {}

  onUnkept = () => {} // (id, problem): "full", "refused", "slow", or null once stored or no longer needed

  // storage: {rows, write, tell, listen} (browser/storage.js); older: {take() → {entries, moved}, forget(id)}, the
  // entries of older versions (browser/older.js); deliver(entry) → outcome (see connection.js)
  constructor(world, storage, older, deliver) {
    this.#world = world
    this.#storage = storage
    this.#older = older
    this.#deliver = deliver
    storage.listen((message) => this.#onMessage(message))
  }

  // Loads the entries that this person's earlier pages left, of all conversations.
  async load() {
    await this.#read()
    this.#isLoaded = true
    this.flush()
  }

  show() {
    this.#isShown = true
    for (const entry of this.#entries.values()) this.#emit(entry, "added")
  }

  get #all() { return [...this.#entries.values()] }

  // The conversation that is created with its first message; an unsaved page finds it again after a reload.
  get unmade() { return this.#all.findLast((entry) => entry.create)?.conversation }

  get size() { return this.#all.filter((entry) => !entry.failed).length }

  of(conversation) { return this.#all.filter((entry) => entry.conversation === conversation) }

  get(id) { return this.#entries.get(id) }

  // beside: operations in the same transaction (the draft is deleted as the message is added)
  add(id, conversation, body, { create = false, beside = [] } = {}) {
    const entry = { id, conversation, body, create, at: this.#world.wall(), tries: 0, storage: "storing" }
    this.#entries.set(entry.id, entry)
    this.#emit(entry, "added")
    this.#store(entry, beside)
    return entry
  }

  // Open while connected; deliveries in flight end in any case. On opening, loads entries first: another tab may have
  // left some, or an earlier load may have failed.
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
    this.#emit(entry, "waiting")
    this.pump(entry.conversation)
  }

  discard(id) {
    const entry = this.#entries.get(id)
    if (entry) this.#remove(entry, "removed")
  }

  // A conversation was deleted: its entries fail with a message, and stay to be copied.
  failAll(conversation, code) {
    for (const entry of this.of(conversation)) if (!entry.failed) this.#fail(entry, { refused: code })
  }

  // No page would show the failed entry: its text becomes a draft, in one transaction. Drafts show up newest first, by
  // `turn`: negative, so these come in their order after typed ones.
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

  // Moves the texts of a conversation's entries: take(operations) writes them elsewhere, in one transaction with the
  // operations that delete their rows. If it rejects, the entries stay.
  async handOver(conversation, take) {
    const entries = this.of(conversation)
    await Promise.all(entries.map(({ id }) => this.#writes.get(id)))
    await take(entries.filter(({ seq }) => seq).map(({ seq }) => ["outbox", "delete", seq]))
    for (const { id } of entries) this.discard(id)
  }

  // Handles an acknowledgement or refusal, also after the end of the delivery.
  settled(id, outcome) {
    const entry = this.#entries.get(id)
    if (!entry) return
    const all = this.of(entry.conversation)
    if (outcome.ok) {
      entry.ack = outcome.ack
      for (const one of all) if (one.create && one !== entry) this.#store(Object.assign(one, { create: false }))
      this.#remove(entry, "sent")
    } else if (outcome.refused) this.#fail(entry, outcome)
    else for (const one of all) if (!one.failed) this.#emit(one, "waiting", outcome) // those behind it wait, too
  }

  // Delivers the first entry. One that is still being stored holds back those behind it.
  async pump(conversation) {
    if (!this.#isOpen || !this.#isLoaded || this.#busy.has(conversation) || this.#waits.has(conversation)) return
    const entry = this.of(conversation).find((one) => !one.failed)
    if (!entry || entry.storage === "storing") return
    this.#busy.add(conversation)
    this.#emit(entry, "sending")
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
    this.#emit(entry, "failed")
  }

  #emit(entry, what, { retry, advice_ms } = {}) {
    try { return this.onChange(entry, what, retry, advice_ms) } catch (error) { console.error(error) }
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

  // Adds rows in their order. Duplicates: two tabs may have moved the same entry from localStorage.
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
      if (this.#isShown) this.#emit(entry, "added")
      this.pump(entry.conversation)
    }
  }

  // An entry that is not stored stays before the next stored one of this page.
  #sort(fresh) {
    const places = new Map(fresh.map((entry) => [entry, entry.seq ?? 0]))
    let next = Number.MAX_SAFE_INTEGER
    for (const entry of this.#all.reverse()) {
      if (places.has(entry)) continue
      next = entry.seq ?? next
      places.set(entry, next)
    }
    this.#entries = new Map([...this.#entries].sort(([, one], [, other]) => places.get(one) - places.get(other)))
  }

  // → {seq}: between the stored entries around it, at random in its share of the gap (another tab may store there, too);
  // {} if none is behind it: the storage assigns the next.
  #gapOf(entry) {
    const all = this.#all
    const here = all.indexOf(entry)
    const to = all.findIndex((one, index) => index > here && one.seq)
    if (entry.seq || to < 0) return {}
    const from = all.findLastIndex((one, index) => index < here && one.seq)
    const low = Math.max(all[to].seq - 1, all[from]?.seq ?? 0)
    return { seq: low + (all[to].seq - low) * (here - from - 0.75 + 0.5 * this.#world.random()) / (to - from - 1) }
  }

  // At once, unless a write of this entry is running: the page may be about to close.
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
      if (!entry.seq) this.#onStored(entry, problemOf(error)) // else its text is stored already
    } finally { this.#world.cancel(late) }
  }

  #onStored(entry, storage) {
    if (!this.#entries.has(entry.id) || entry.seq && storage === "slow") return
    entry.storage = storage
    this.onUnkept(entry.id, storage === "stored" ? null : storage)
    this.#emit(entry, "stored")
    this.pump(entry.conversation)
  }

  #remove(entry, what) {
    this.#entries.delete(entry.id)
    this.#settled.add(entry.id)
    this.onUnkept(entry.id, null)
    this.#erase(entry, this.#emit(entry, what))
  }

  // If that fails, the next page sends the entry again, and the server recognizes it.
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

  // Another tab settled or discarded an entry that this tab has loaded, too.
  #onMessage({ type, id }) {
    if (type === "missed" && this.#isLoaded) this.#read()
    if (type !== "settled") return
    const entry = this.#entries.get(id)
    if (!entry || this.#busy.has(entry.conversation)) return
    this.#entries.delete(id)
    this.#settled.add(id)
    this.onUnkept(id, null)
    this.#emit(entry, "removed")
  }
}
