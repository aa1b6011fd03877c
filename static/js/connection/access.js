// The session's access: renewed before its end, and once more where a request was answered 401 all the same (the machine
// slept over the end). The server decides; this asks, one request at a time.

import { codeOf } from "./posts.js"
import { ENDED } from "./states.js"

const WITHIN = 5000 // ms for an answer
const SHARE = 0.7 // of the access's life after which it is renewed, and up to SPREAD more: not all clients together
const SPREAD = 0.15
const AGAIN = 20000 // ms after a failure, and up to twice as long
const LONGEST = 86400000 // ms; timers of browsers overflow after 24 days

export class Access {
  #config; #world; #report; #onEnd; #timer = null; #asking = null; #isOn = false; #life; #due; #dueByWall

  // report(): a renewal was done; onEnd(outcome): one of ENDED, where nobody else was waiting for it
  constructor(config, world, report, onEnd) {
    this.#onEnd = onEnd
    this.#config = config
    this.#world = world
    this.#report = report
    this.#lasts(config.access_ms ?? Infinity)
  }

  // Keeps the access from now on.
  start() {
    this.stop()
    this.#isOn = true
    const left = Math.min(this.#due - this.#world.now(), LONGEST)
    this.#timer = this.#world.later(() => this.#onDue(), Math.max(0, left))
  }

  stop() {
    this.#isOn = false
    this.#world.cancel(this.#timer)
  }

  // After a hint that the machine may have slept, during which no timer runs: a page does not
  // see why the server refuses a WebSocket.
  check() { if (this.#isOn && this.#world.wall() >= this.#dueByWall) this.#onDue() }

  // → "renewed", one of ENDED, or "unknown": there was no answer
  renew() {
    return this.#asking ??= this.#ask().catch(() => "unknown").finally(() => { this.#asking = null })
  }

  async #onDue() {
    const outcome = this.#isDone() ? "" : await this.renew()
    if (ENDED.includes(outcome)) this.#onEnd(outcome)
    if (this.#isOn) this.start()
  }

  // Another tab has renewed it meanwhile.
  #isDone() {
    const { at, life } = this.#world.notes.read("access") ?? {}
    const age = this.#world.wall() - at
    if (!(age >= 0 && age < SHARE * life)) return this.#due > this.#world.now() && this.#dueByWall > this.#world.wall()
    this.#lasts(life, age)
    return true
  }

  // age: since the renewal
  #lasts(life, age = 0) {
    this.#life = life
    const left = life * (SHARE + SPREAD * this.#world.random()) - age
    this.#due = this.#world.now() + left
    this.#dueByWall = this.#world.wall() + left
  }

  async #ask() {
    const { renew_url: url } = this.#config
    if (!url) return "signed-out"
    const later = AGAIN * (1 + this.#world.random())
    this.#due = this.#world.now() + later
    this.#dueByWall = this.#world.wall() + later
    let answer = await this.#post(url)
    const isOurs = lifeOf(answer) || codeOf(answer.text)
    if (!isOurs || codeOf(answer.text) === "csrf") { // a filter of POSTs; or another sign-in, or a sign-out
      const outcome = await this.#world.session.refresh() // a page renews on the way
      if (outcome === "signed-out") return outcome
      if (isOurs) answer = await this.#post(url)
      else if (outcome === "renewed") answer = { status: 200, text: JSON.stringify({ access_ms: this.#life }) }
    }
    const life = lifeOf(answer)
    const code = codeOf(answer.text)
    if (!life) return ENDED.includes(code) ? code : "unknown"
    this.#lasts(life)
    this.#world.page.protocol = JSON.parse(answer.text).protocol ?? this.#world.page.protocol ?? ""
    this.#world.notes.write("access", { at: this.#world.wall(), life })
    this.#report()
    return "renewed"
  }

  #post(url) {
    return this.#world.ask("POST", url, [["csrf_token", this.#world.session.token]], { within: WITHIN })
  }
}

// What a renewal says, in ms; 0 if it is none of our server.
function lifeOf({ status, text }) {
  try { return status === 200 && Number(JSON.parse(text).access_ms) || 0 } catch { return 0 }
}
