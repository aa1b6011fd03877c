// Finds out why WebSocket does not open. A browser hides the status of a refused upgrade, so the server is asked over
// HTTP: does it answer itself, and would it have accepted? Only then is the network blamed.

const WITHIN = 5000 // ms
const VALID = 60000 // ms until the server is asked again
const PAUSE = 10000 // ms to the next question after a failed one, doubled each time, up to VALID
const DRILL_ENDS = 3000 // ms after the end of a drill during which sockets may still be cut

// Reasons of a failed attempt that may also be a refusal by the server.
const UNEXPLAINED = ["upgrade-failed", "upgrade-hung", "mute"]

export class Cause {
  #url; #world; #on; #found = null; #foundAt = 0; #isAsking = false; #notBefore = 0; #pause = PAUSE; #drillUntil = 0

  // mark_url: of the test page of the server; on(event): {type: "cause", of: the previous reason, reason}
  constructor({ mark_url: url, drill_ms: drill }, world, on) {
    this.#url = url
    this.#world = world
    this.#on = on
    this.noteDrill(drill)
  }

  // A drill: the server injects faults for this time (ms). Learn nothing from them.
  noteDrill(ms) { if (ms > 0) this.#drillUntil = this.#now + Number(ms) + DRILL_ENDS }

  get isDrill() { return this.#now < this.#drillUntil }

  forget() {
    this.#found = null
    this.#notBefore = 0
    this.#pause = PAUSE
  }

  // The transport's event, with a known reason; `advice_ms` means to the state machine: not WebSocket's fault.
  excuse(event) {
    if (event.type !== "ws_closed") return event
    if (this.isDrill) return { advice_ms: 0, ...event, reason: "drill" }
    const isKnown = event.reason === "upgrade-failed" && this.#found !== null
    return isKnown ? { ...event, reason: this.#found } : event
  }

  // True if the reason was found out, not guessed: it may be remembered.
  isSure(reason) { return !this.isDrill && (!UNEXPLAINED.includes(reason) || this.#isFresh) }

  // Called at each change of the record.
  async explain({ status, ws, wsReason }) {
    const isOpen = UNEXPLAINED.includes(wsReason)
    if (status !== "polling" || ws !== "none" || !wsReason) return // not tried: not failed
    if (!isOpen && wsReason !== this.#found) return
    const emit = (reason) => this.#on({ type: "cause", of: wsReason, reason })
    if (this.isDrill) return isOpen && emit("drill")
    if (this.#isAsking || this.#isFresh || this.#now < this.#notBefore) return
    this.#isAsking = true
    const found = await this.#ask()
    this.#isAsking = false
    if (found === "drill") return emit(found)
    if (!found) return this.#askLater()
    this.#pause = PAUSE
    this.#found = found
    this.#foundAt = this.#now
    // "upgrade-hung" and "mute" are more precise than "upgrade-refused".
    emit(found === "upgrade-refused" && isOpen && wsReason !== "upgrade-failed" ? wsReason : found)
  }

  #askLater() {
    this.#notBefore = this.#now + this.#pause
    this.#pause = Math.min(VALID, 2 * this.#pause)
  }

  get #now() { return this.#world.now() }

  get #isFresh() { return this.#found !== null && this.#now - this.#foundAt < VALID }

  // → "upgrade-refused" (by the network) if the server would have accepted; null if it could not be asked
  async #ask() {
    const nonce = String(this.#world.random()).slice(2)
    try {
      const fields = [["nonce", nonce], ["origin", this.#world.origin]]
      const { text } = await this.#world.ask("GET", this.#url, fields, { within: WITHIN })
      const mark = find(this.#world.parse(text), "chat-test")
      const says = (name) => mark?.getAttribute(name)
      if (says("nonce") !== nonce) return null
      if (says("drill")) {
        this.noteDrill(Number(says("drill-ms")))
        return "drill"
      }
      if (says("origin") === "no") return "origin"
      if (says("limited") === "yes") return "rate-limited"
      return says("room") === "no" ? "server-full" : "upgrade-refused"
    } catch { return null }
  }
}

// Searches descendants, too: a middlebox may have wrapped the element.
function find(elements, name) {
  for (const element of elements) {
    const found = element.localName === name ? element : find(element.children, name)
    if (found) return found
  }
  return null
}
