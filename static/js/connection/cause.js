// Why WebSocket does not open. A browser does not tell with which status an upgrade was refused, so the server is asked
// over HTTP: does it answer itself, did it refuse, and what did it expect? Only then is the network blamed.

const WITHIN = 5000
const VALID = 60000 // an explanation is believed so long, then the server is asked again
const PAUSE = 10000 // where none could be had it is asked so much later, then twice as much, up to VALID
const DRILL_ENDS = 3000 // sockets are cut until so much later

// What one failed attempt cannot tell from a refusal by the server.
const UNEXPLAINED = ["upgrade-failed", "upgrade-hung", "mute"]

export class Cause {
  #url; #world; #on; #found = null; #foundAt = 0; #isAsking = false; #notBefore = 0; #pause = PAUSE; #drillUntil = 0

  // url: of the server's mark; on(event): {type: "cause", of: the reason so far, reason}
  constructor({ mark_url: url, drill_ms: drill }, world, on) {
    this.#url = url
    this.#world = world
    this.#on = on
    this.noteDrill(drill)
  }

  // The server fails on purpose for so long (ms): nothing is learned from it.
  noteDrill(ms) { if (ms > 0) this.#drillUntil = this.#world.now() + Number(ms) + DRILL_ENDS }

  get isDrill() { return this.#world.now() < this.#drillUntil }

  forget() {
    this.#found = null
    this.#notBefore = 0
    this.#pause = PAUSE
  }

  // What the transport reports, as far as it is not WebSocket's fault: `advice_ms` says so to the state machine.
  excuse(event) {
    if (event.type !== "ws_closed") return event
    if (this.isDrill) return { advice_ms: 0, ...event, reason: "drill" }
    const isKnown = event.reason === "upgrade-failed" && this.#found !== null
    return isKnown ? { ...event, reason: this.#found } : event
  }

  // Whether this reason may be learned from: it has been found, not guessed.
  isSure(reason) { return !this.isDrill && (!UNEXPLAINED.includes(reason) || this.#isFresh) }

  // Every change of the record.
  async explain({ status, ws, wsReason }) {
    const isOpen = UNEXPLAINED.includes(wsReason)
    if (status !== "polling" || ws !== "none" || !wsReason) return // what was not tried has not failed
    if (!isOpen && wsReason !== this.#found) return
    const tell = (reason) => this.#on({ type: "cause", of: wsReason, reason })
    if (this.isDrill) return isOpen && tell("drill")
    if (this.#isAsking || this.#isFresh || this.#world.now() < this.#notBefore) return
    this.#isAsking = true
    const found = await this.#ask()
    this.#isAsking = false
    if (found === "drill") return tell(found)
    if (!found) return this.#askLater()
    this.#pause = PAUSE
    this.#found = found
    this.#foundAt = this.#world.now()
    // That it hung, or was mute, says more than that it was not the server who refused.
    tell(found === "upgrade-refused" && isOpen && wsReason !== "upgrade-failed" ? wsReason : found)
  }

  #askLater() {
    this.#notBefore = this.#world.now() + this.#pause
    this.#pause = Math.min(VALID, 2 * this.#pause)
  }

  get #isFresh() { return this.#found !== null && this.#world.now() - this.#foundAt < VALID }

  // "upgrade-refused", by the network, where the server would have taken it; null where it could not be asked.
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
      return says("room") === "no" ? "server-full" : "upgrade-refused"
    } catch { return null }
  }
}

// Something on the way may have put its own around it.
function find(elements, name) {
  for (const element of elements) {
    const found = element.localName === name ? element : find(element.children, name)
    if (found) return found
  }
  return null
}
