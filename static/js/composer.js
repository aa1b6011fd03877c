// The composer: Enter sends, Shift+Enter breaks the line, drafts are kept per conversation. The text is cleared only
// once the outbox has it. Nothing here knows how, or whether, a message travels.

const STORING = 850 // ms after a key until the draft is stored

// Where the keyboard goes when what had it vanishes; not on phones, where it would cover half of the page.
export function focusComposer() {
  if (!isTouch()) document.querySelector("#composer textarea[name=body]:enabled")?.focus({ preventScroll: true })
}

export class Composer {
  #form = document.getElementById("composer")
  #text; #key; #storing = null; #hadFocus = false
  #known = "" // what this tab last read or wrote: a draft that another tab changed meanwhile is not this one's

  // key: of the draft in localStorage; send(body) → true once it is stored in the outbox
  constructor(key, send) {
    this.#text = this.#form?.querySelector("textarea[name=body]")
    this.#key = key
    if (!this.#text) return
    this.#restore()
    this.#text.addEventListener("input", () => this.#onInput())
    this.#text.addEventListener("keydown", (event) => this.#onKey(event))
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault()
      this.#submit(send)
    })
    addEventListener("pagehide", () => this.#store())
    document.addEventListener("visibilitychange", () => { if (document.hidden) this.#store() })
    this.#grow()
  }

  // Only a person who cannot send at all (signed out, refused) finds it disabled.
  setEnabled(isEnabled) {
    if (!this.#text || this.#text.disabled === !isEnabled) return
    if (!isEnabled) this.#hadFocus = document.activeElement === this.#text // a disabled field loses it
    this.#text.disabled = !isEnabled
    const button = this.#form.querySelector("button[type=submit]")
    if (button) button.disabled = !isEnabled
    const isFree = document.activeElement === document.body || document.activeElement === this.#text
    if (isEnabled && this.#hadFocus && isFree) this.#text.focus()
  }

  // The page has become another conversation's: so has the draft.
  moveTo(key) {
    if (!this.#text) return
    this.#write("")
    this.#key = key
    this.#store()
  }

  #submit(send) {
    const body = this.#text.value
    if (!body.trim() || this.#text.disabled) return this.#text.focus()
    try {
      if (!send(body)) return
    } catch (error) {
      console.error(error)
      return
    }
    this.#text.value = ""
    this.#onInput()
    this.#store()
    this.#text.focus({ preventScroll: true })
  }

  #onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.altKey || event.isComposing || event.keyCode === 229) return
    if (isTouch() && !event.ctrlKey && !event.metaKey) return // there, Enter breaks the line; the button sends
    event.preventDefault()
    this.#form.requestSubmit()
  }

  #onInput() {
    this.#grow()
    this.#storing ??= setTimeout(() => this.#store(), STORING)
  }

  // For browsers without field-sizing.
  #grow() {
    if (CSS.supports?.("field-sizing", "content")) return
    this.#text.rows = Math.min(8, this.#text.value.split("\n").length)
  }

  #store() {
    clearTimeout(this.#storing)
    this.#storing = null
    this.#write(this.#text.value)
  }

  #write(draft) {
    if (draft === this.#known) return
    this.#known = draft
    try {
      if (draft) localStorage.setItem(this.#key, draft)
      else localStorage.removeItem(this.#key)
    } catch (error) { console.error("draft not stored", error) }
  }

  #restore() {
    try {
      this.#known = localStorage.getItem(this.#key) ?? ""
      if (this.#known && !this.#text.value) this.#text.value = this.#known
    } catch (error) { console.error(error) }
  }
}

const isTouch = () => matchMedia("(pointer: coarse)").matches && !matchMedia("(any-pointer: fine)").matches
