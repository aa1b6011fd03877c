// The composer: Enter sends, Shift+Enter breaks the line, drafts are kept per conversation. The text is cleared only
// once the outbox has it. Nothing here knows how, or whether, a message travels.

const TYPING = 65 // ms after a key until the draft is kept in memory
const STORING = 850 // and until it is stored

export class Composer {
  #form = document.getElementById("composer")
  #text; #key; #draft = null; #typing = null; #storing = null

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
    const hadFocus = document.activeElement === this.#text
    this.#text.disabled = !isEnabled
    const button = this.#form.querySelector("button[type=submit]")
    if (button) button.disabled = !isEnabled
    if (isEnabled && hadFocus) this.#text.focus()
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
    clearTimeout(this.#typing)
    this.#typing = setTimeout(() => {
      this.#draft = this.#text.value
      this.#grow()
    }, TYPING)
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
    this.#draft = this.#text.value
    try {
      if (this.#draft) localStorage.setItem(this.#key, this.#draft)
      else localStorage.removeItem(this.#key)
    } catch (error) { console.error("draft not stored", error) }
  }

  #restore() {
    try {
      const draft = localStorage.getItem(this.#key)
      if (draft && !this.#text.value) this.#text.value = draft
    } catch (error) { console.error(error) }
  }
}

const isTouch = () => matchMedia("(pointer: coarse)").matches && !matchMedia("(any-pointer: fine)").matches
