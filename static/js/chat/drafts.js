// The draft of the open conversation. Each tab writes a separate row, so none overwrites another's. A tab without input
// shows the newest draft of any tab, and takes it over with its first change.

import { uuid } from "../browser/uuid.js"
import { problemOf } from "../connection/outbox.js"
import { movedDrafts } from "../browser/older.js"
import { noteUnkept } from "./unkept.js"

const SLOW = 1000 // ms after which a pending write is reported as unkept
export const NEW = "new" // stands for the conversation of drafts that belong to none

const deletion = (key) => ["drafts", "delete", key]

export class Drafts {
  #storage; #prefix; #owner; #conversation = null; #isEmpty = () => false
  #text = ""; #isOwn = false; #isDirty = false
  #isStored = true; #writing = null; #writes = null // true for the current text; the running write; the loop of writes
  #shown = null // the row of another tab, if shown here
  #stale = [] // keys of rows that the next write deletes
  #turn = 0 // the highest seen: orders rows, as a logical clock
  onChange = () => {} // (text): from another tab, to be shown here

  constructor(storage, prefix) {
    this.#storage = storage
    this.#prefix = prefix
    this.#owner = claimId(prefix)
    storage.listen((message) => this.#onMessage(message))
    addEventListener("pagehide", () => storeId(prefix, this.#owner))
    addEventListener("pageshow", (event) => { if (event.persisted) claimId(prefix) })
  }

  // → the text to show. isEmpty() → true while the conversation has no message: drafts of NEW are shown, too
  async open(conversation, isEmpty) {
    this.#conversation = conversation
    this.#isEmpty = isEmpty
    try {
      await movedDrafts(this.#storage, this.#prefix)
      this.#adopt(await this.#newest())
    } catch (error) { console.error("no draft can be read", error) }
    return this.#text
  }

  // Sets and writes the text. Resolves once written, or failed.
  edit(text) {
    this.#text = text
    this.#isOwn = this.#isDirty = true
    this.#isStored = false
    return this.#writes ??= this.#write()
  }

  // Takes text from elsewhere, in one transaction with the operations that delete it there. Rejects without any change.
  async takeOver(text, beside) {
    const before = this.#text
    this.#text = text
    this.#isOwn = true
    this.#isDirty = this.#isStored = false
    try {
      await this.#store(text, beside)
    } catch (error) {
      this.edit(before)
      throw error
    }
  }

  // When the page closes or is hidden: does not wait for the running write.
  flush() { if (this.#isDirty) this.#writeOnce() }

  // The text is sent. → operations that delete its rows, to be written with the message
  release() {
    const operations = [...this.#stale, this.#key, ...this.#shownKeys].map(deletion)
    this.#notifyTaken(true)
    this.#clear()
    this.#shown = null
    return operations
  }

  #clear() {
    this.#text = ""
    this.#isOwn = this.#isDirty = false
  }

  // The operations of release() are written.
  released() { this.#notify() }

  // The page now belongs to another conversation, or to none (NEW), and so does the draft. Rejects if that could not be
  // stored; the old row remains.
  async moveTo(conversation) {
    if (conversation === this.#conversation) return
    this.#stale = [...this.#stale, this.#key] // a new array: the running write still uses the old one
    this.#conversation = conversation
    if (this.#text) await this.edit(this.#text)
    if (this.#text && !this.#isStored) throw new Error("the draft has not moved")
  }

  get #key() { return [this.#conversation, this.#owner] }

  get #shownKeys() { return this.#shown ? [[this.#shown.conversation, this.#shown.owner]] : [] }

  // This tab's row, else the newest; of this conversation, else of NEW.
  async #newest() {
    const names = this.#isEmpty() ? [this.#conversation, NEW] : [this.#conversation]
    for (const name of names) {
      const rows = await this.#storage.rows("drafts", IDBKeyRange.bound([name], [name, []]))
      this.#turn = Math.max(this.#turn, ...rows.map((row) => row.turn))
      const found = rows.find((row) => row.owner === this.#owner) ?? rows.sort((one, other) => other.turn - one.turn)[0]
      if (found) return found
    }
    return null
  }

  async #write() {
    while (this.#isDirty) await this.#writeOnce()
    this.#writes = null
  }

  #writeOnce() { return this.#writing = this.#save() }

  async #save() {
    this.#isDirty = false
    const text = this.#text
    try {
      await this.#store(text)
    } catch (error) {
      console.error("draft not stored", error)
      noteUnkept("draft", text.trim() ? problemOf(error) : null)
    }
  }

  // In one transaction: this tab's row, the deletion of others, further operations.
  async #store(text, beside = []) {
    const [left, shown] = [this.#stale, this.#shown]
    const timer = setTimeout(() => noteUnkept("draft", text.trim() ? "slow" : null), SLOW)
    try {
      const ends = [...left, ...this.#shownKeys].map(deletion)
      await this.#storage.write([...ends, this.#operation(text), ...beside])
    } finally { clearTimeout(timer) }
    this.#stale = this.#stale.filter((key) => !left.includes(key))
    if (shown && shown === this.#shown) this.#notifyTaken(false)
    if (shown === this.#shown) this.#shown = null
    if (text === this.#text) this.#isStored = true
    noteUnkept("draft", null)
    this.#notify()
  }

  #operation(text) {
    if (!text) return deletion(this.#key)
    return ["drafts", "put", { conversation: this.#conversation, owner: this.#owner, turn: ++this.#turn, text }]
  }

  // --- between tabs ---

  #notify() { this.#storage.tell({ type: "draft", conversation: this.#conversation, turn: this.#turn }) }

  #notifyTaken(isSent) {
    if (this.#shown) this.#storage.tell({ type: "draft-taken", ...this.#shown, isSent })
  }

  #onMessage({ type, conversation, turn, owner, text, isSent }) {
    const isHere = conversation === this.#conversation || (conversation === NEW && this.#isEmpty())
    if (type === "draft" && isHere) {
      this.#turn = Math.max(this.#turn, turn)
      if (!this.#isOwn) this.#refresh()
    } else if (type === "missed") this.#onMissed()
    else if (type === "draft-taken" && owner === this.#owner && this.#isOwn) this.#onTaken(isSent && text === this.#text)
  }

  // Another tab took this text over. If it sent exactly this text, clear it here; else keep it.
  #onTaken(isDone) {
    if (!isDone) return this.edit(this.#text)
    this.#clear()
    this.onChange("")
  }

  // Back from the back/forward cache: later pages of this tab used its id, and may have changed or deleted the row.
  async #onMissed() {
    await this.#writing
    if (this.#isOwn && !this.#isStored) return // it exists only here
    this.#isOwn = false
    this.#refresh()
  }

  async #refresh() {
    try {
      const row = await this.#newest()
      if (this.#isOwn) return // typing began meanwhile
      const before = this.#text
      this.#adopt(row)
      if (this.#text !== before) this.onChange(this.#text)
    } catch (error) { console.error(error) }
  }

  #adopt(row) {
    this.#isOwn = row?.owner === this.#owner && row.conversation === this.#conversation
    this.#shown = this.#isOwn ? null : row
    this.#isStored = true
    this.#text = row?.text ?? ""
  }
}

// A tab keeps its id from page to page. A page removes it while in use: a duplicated tab must not get the same id.
function claimId(prefix) {
  const key = `${prefix}:tab`
  try {
    const id = sessionStorage.getItem(key)
    sessionStorage.removeItem(key)
    return id ?? uuid()
  } catch { return uuid() }
}

function storeId(prefix, id) {
  try { sessionStorage.setItem(`${prefix}:tab`, id) } catch { /* the next page counts as another tab */ }
}
