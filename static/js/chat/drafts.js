// The draft of the open conversation. Each tab writes a row of its own, so none overwrites what another one holds. A tab
// in which nothing was typed shows what was written last in any of them, and takes that over with its first change.

import { uuid } from "../browser/uuid.js"
import { problemOf } from "../connection/outbox.js"
import { movedDrafts } from "../browser/older.js"
import { noteUnkept } from "./unkept.js"

const PATIENCE = 1000 // ms until a write that does not end is called unkept
export const NEW = "new" // of no conversation yet, or of none any more

export class Drafts {
  #storage; #prefix; #owner; #conversation = null; #isEmpty = () => false
  #text = ""; #isOwn = false; #isDirty = false
  #isStored = true; #writing = null; #writes = null // the text, as it is here; the newest write; all until it is as here
  #shown = null // the row of another tab that is shown here
  #left = [] // keys of rows that this tab's next write deletes
  #turn = 0 // the newest that was heard of: rows are ordered by it, not by anybody's clock
  onChange = () => {} // (text): written in another tab, to be shown here

  constructor(storage, prefix) {
    this.#storage = storage
    this.#prefix = prefix
    this.#owner = takeName(prefix)
    storage.listen((message) => this.#onMessage(message))
    addEventListener("pagehide", () => putName(prefix, this.#owner))
    addEventListener("pageshow", (event) => { if (event.persisted) takeName(prefix) })
  }

  // → the text to show. isEmpty() → as long as nothing was said, what belongs to no conversation is shown, too
  async open(conversation, isEmpty) {
    this.#conversation = conversation
    this.#isEmpty = isEmpty
    try {
      await movedDrafts(this.#storage, this.#prefix)
      this.#take(await this.#newest())
    } catch (error) { console.error("no draft can be read", error) }
    return this.#text
  }

  // What the person has typed. Resolves once it was written, or could not be.
  edit(text) {
    this.#text = text
    this.#isOwn = this.#isDirty = true
    this.#isStored = false
    return this.#writes ??= this.#write()
  }

  // What stood elsewhere is the draft once it is written, together with the operations that end it there. Else it rejects,
  // and nothing has changed.
  async takeOver(text, beside) {
    const before = this.#text
    this.#text = text
    this.#isOwn = true
    this.#isDirty = this.#isStored = false
    try {
      await this.#keep(text, beside)
    } catch (error) {
      this.edit(before)
      throw error
    }
  }

  // The page closes or is hidden: not behind the write that runs.
  flush() { if (this.#isDirty) this.#writeOnce() }

  // The text is sent: the operations that end its rows, to be written together with the message.
  release() {
    const operations = [...this.#left, this.#key, ...this.#shownKeys].map((key) => ["drafts", "delete", key])
    this.#tellTaken(true)
    this.#text = ""
    this.#isOwn = this.#isDirty = false
    this.#shown = null
    return operations
  }

  // They are written.
  released() { this.#tell() }

  // The page has become another conversation's, or no conversation's: so has what is written on it. Rejects where
  // that could not be stored there: then it is where it was.
  async moveTo(conversation) {
    if (conversation === this.#conversation) return
    this.#left = [...this.#left, this.#key] // not in place: what is being written goes by the one before
    this.#conversation = conversation
    if (this.#text) await this.edit(this.#text)
    if (this.#text && !this.#isStored) throw new Error("the draft has not moved")
  }

  get #key() { return [this.#conversation, this.#owner] }

  get #shownKeys() { return this.#shown ? [[this.#shown.conversation, this.#shown.owner]] : [] }

  // Own rows first; else the newest, of this conversation before those of none.
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

  #writeOnce() { return this.#writing = this.#put() }

  async #put() {
    this.#isDirty = false
    const text = this.#text
    try {
      await this.#keep(text)
    } catch (error) {
      console.error("draft not stored", error)
      noteUnkept("draft", text.trim() ? problemOf(error) : null)
    }
  }

  // All or none: as this tab's row, the end of others, the operations beside.
  async #keep(text, beside = []) {
    const [left, shown] = [this.#left, this.#shown]
    const late = setTimeout(() => noteUnkept("draft", text.trim() ? "slow" : null), PATIENCE)
    try {
      const ends = [...left, ...this.#shownKeys].map((key) => ["drafts", "delete", key])
      await this.#storage.write([...ends, this.#own(text), ...beside])
    } finally { clearTimeout(late) }
    this.#left = this.#left.filter((key) => !left.includes(key))
    if (shown && shown === this.#shown) this.#tellTaken(false)
    if (shown === this.#shown) this.#shown = null
    if (text === this.#text) this.#isStored = true
    noteUnkept("draft", null)
    this.#tell()
  }

  #own(text) {
    if (!text) return ["drafts", "delete", this.#key]
    return ["drafts", "put", { conversation: this.#conversation, owner: this.#owner, turn: ++this.#turn, text }]
  }

  // --- between tabs ---

  #tell() { this.#storage.tell({ type: "draft", conversation: this.#conversation, turn: this.#turn }) }

  #tellTaken(isSent) {
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

  // Another tab went on with this one's text. If it has sent it as it is, it is done with; else this one keeps its own.
  #onTaken(isDone) {
    if (!isDone) return this.edit(this.#text)
    this.#text = ""
    this.#isOwn = this.#isDirty = false
    this.onChange("")
  }

  // Back from the browser's cache: later pages of this tab had its name, and may have written the row on, or ended it.
  async #onMissed() {
    await this.#writing
    if (this.#isOwn && !this.#isStored) return // it is nowhere else
    this.#isOwn = false
    this.#refresh()
  }

  async #refresh() {
    try {
      const row = await this.#newest()
      if (this.#isOwn) return // somebody began to type
      const before = this.#text
      this.#take(row)
      if (this.#text !== before) this.onChange(this.#text)
    } catch (error) { console.error(error) }
  }

  #take(row) {
    this.#isOwn = row?.owner === this.#owner && row.conversation === this.#conversation
    this.#shown = this.#isOwn ? null : row
    this.#isStored = true
    this.#text = row?.text ?? ""
  }
}

// A tab keeps its name from page to page. It is taken while a page has it: a copy of the tab must not have the same.
function takeName(prefix) {
  const key = `${prefix}:tab`
  try {
    const name = sessionStorage.getItem(key)
    sessionStorage.removeItem(key)
    return name ?? uuid()
  } catch { return uuid() }
}

function putName(prefix, name) {
  try { sessionStorage.setItem(`${prefix}:tab`, name) } catch { /* the next page is another tab to the drafts */ }
}
