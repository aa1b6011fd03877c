// The composer: Enter sends, Shift+Enter breaks the line, drafts are kept per conversation (chat/drafts.js). The text
// is cleared only after the outbox has taken it. Knows nothing of the connection.

import { announce } from "./announcer.js"

// White space and invisible characters (chatapp/visible.py): such a message would be an empty bubble.
const BLANK = /^[\p{White_Space}\p{Default_Ignorable_Code_Point}\p{Cc}\p{Cf}\u2800]*$/u

// For when the focused element has vanished. Not on phones: the on-screen keyboard would cover half of the page.
export function focusComposer() {
  if (!isTouch()) document.querySelector("#composer textarea[name=body]:enabled")?.focus({ preventScroll: true })
}

const NEAR = 0.9 // share of the limit from which the length is shown
const IME = 229 // keyCode of keys that an input method handles (Safari: isComposing is false for the last one)

export class Composer {
  #form = document.getElementById("composer")
  #count = document.getElementById("count"); #text; #drafts; #hadFocus = false; #selection
  #level = ""; #isAside = false; #isOpen = false; #isSubmitted = false // sent before open()

  // send(body, beside) → truthy if the outbox has taken it; beside: operations to write in the same transaction
  constructor(drafts, send) {
    this.#text = this.#form?.querySelector("textarea[name=body]")
    this.#drafts = drafts
    if (!this.#text) return
    this.#text.autocomplete = "off" // else the browser restores sent text; only without scripts it should
    drafts.onChange = (text) => this.#show(text)
    this.#text.addEventListener("input", () => this.#onInput())
    this.#text.addEventListener("keydown", (event) => this.#onKey(event))
    this.#form.addEventListener("submit", (event) => {
      if (this.#isAside) return
      event.preventDefault()
      this.#submit(send)
    })
    addEventListener("pagehide", () => drafts.flush())
    document.addEventListener("visibilitychange", () => { if (document.hidden) drafts.flush() })
    this.#grow()
  }

  get text() { return this.#text?.value ?? "" }

  // Restores the draft of a conversation, before any text that was typed already.
  async open(conversation, isEmpty) {
    if (!this.#text) return
    const draft = await this.#drafts.open(conversation, isEmpty)
    const typed = this.#text.value
    this.#isOpen = true
    if (this.#isSubmitted) this.#form.requestSubmit()
    if (this.#isSubmitted && draft && draft !== typed) this.put(draft)
    else if (!typed) this.#show(draft)
    else if (!this.#isSubmitted && typed !== draft) this.put(typed.startsWith(draft) ? typed : `${draft}\n${typed}`)
  }

  // As if typed.
  put(text) {
    this.#show(text)
    this.#drafts.edit(text)
  }

  // Takes text from elsewhere with the operations that delete it there (see Drafts). Read-only meanwhile.
  async takeOver(text, beside) {
    this.#text.readOnly = true
    try {
      await this.#drafts.takeOver(text, beside)
      this.#show(text)
    } finally { this.#text.readOnly = false }
  }

  // The page did not start: the form is sent as without JavaScript.
  standAside() {
    this.#isAside = true
    this.#text?.removeAttribute("autocomplete")
    if (this.#isSubmitted && !this.#isOpen) this.#form.requestSubmit()
  }

  // Disabled only if sending is impossible (signed out, refused).
  setEnabled(isEnabled) {
    if (!this.#text || this.#text.disabled === !isEnabled) return
    if (!isEnabled) { // a disabled field loses both
      this.#hadFocus = document.activeElement === this.#text
      this.#selection = [this.#text.selectionStart, this.#text.selectionEnd]
    }
    this.#text.disabled = !isEnabled
    const button = this.#form.querySelector("button[type=submit]")
    if (button) button.disabled = !isEnabled
    const isFree = document.activeElement === document.body || document.activeElement === this.#text
    if (!isEnabled || !this.#hadFocus || !isFree) return
    this.#text.focus()
    this.#text.setSelectionRange(...this.#selection)
  }

  // The page now belongs to another conversation, and so does the draft. Resolves once it is stored; see Drafts.
  moveTo(conversation) { return this.#drafts.moveTo(conversation) }

  // The outbox has stored or sent an entry of this conversation. One that it could not store has kept its draft.
  confirm({ storage, ack }) {
    if (storage === "stored") this.#drafts.released()
    else if (ack) this.#drafts.edit(this.text)
  }

  #submit(send) {
    const body = this.#text.value
    if (!body.trim() || this.#text.disabled) return this.#text.focus()
    if (this.#isTooLong()) {
      announce(this.#count.textContent)
      return this.#text.focus()
    }
    if (BLANK.test(body)) return this.#refuse(this.#text.dataset.blank)
    if (!this.#isOpen) return this.#isSubmitted = true
    let isTaken = false
    try {
      isTaken = send(body, this.#drafts.release())
    } catch (error) { console.error(error) }
    if (!isTaken) return this.#drafts.edit(body)
    this.#show("")
    this.#text.focus({ preventScroll: true })
  }

  // In the browser's validation bubble, until the next input.
  #refuse(reason) {
    this.#text.setCustomValidity(reason)
    this.#text.reportValidity()
    this.#text.addEventListener("input", () => this.#text.setCustomValidity(""), { once: true })
  }

  #onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.altKey || event.isComposing || event.keyCode === IME) return
    if (isTouch() && !event.ctrlKey && !event.metaKey) return // Enter breaks the line; the button sends
    event.preventDefault()
    this.#form.requestSubmit()
  }

  // Counts as the server does: characters, not UTF-16 units, without white space at the ends.
  #isTooLong() {
    if (!this.#count) return false
    const most = Number(this.#count.dataset.most)
    const isNear = this.#text.value.length > NEAR * most
    const length = isNear ? [...this.#text.value.trim()].length : 0
    const isOver = length > most
    this.#count.hidden = length <= NEAR * most
    this.#count.classList.toggle("over", isOver)
    const words = isOver ? this.#count.dataset.over : this.#count.dataset.near
    if (!this.#count.hidden) this.#count.textContent = words.replace("{n}", (isOver ? length - most : length).toLocaleString("en"))
    const level = this.#count.hidden ? "" : isOver ? "over" : "near"
    if (level && level !== this.#level) announce(this.#count.textContent) // once a level, not at each key
    this.#level = level
    return isOver
  }

  #onInput() {
    this.#grow()
    this.#isTooLong()
    if (this.#isOpen) this.#drafts.edit(this.#text.value)
  }

  #show(text) {
    if (!this.#text || this.#text.value === text) return
    this.#text.setCustomValidity("") // the refusal was about the old text
    this.#text.value = text
    this.#grow()
    this.#isTooLong()
  }

  // For browsers without field-sizing.
  #grow() {
    if (CSS.supports?.("field-sizing", "content")) return
    this.#text.rows = Math.min(8, this.#text.value.split("\n").length)
  }
}

const isTouch = () => matchMedia("(pointer: coarse)").matches && !matchMedia("(any-pointer: fine)").matches
