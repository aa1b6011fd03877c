// The tabs of one person in one browser: which of them holds (a Web Lock says), and what they tell each other (over a
// BroadcastChannel). Knows nothing of connections.

import { uuid } from "./uuid.js"

const PATIENCE = 1000 // between looks at the holder
const SILENCE = 900 // one that answers nothing for so long is robbed; twice as long after each robbery of a minute
const LONGEST_PATIENCE = 8000
const LATE = 500 // a timer so late says that this tab stood still, not that the holder is silent
const IDLE = 3000 // how long a visible tab that waits for nothing leaves a silent holder alone

export class Tabs {
  id = ""
  isHolder = false
  #prefix; #world; #channel = null
  #letGo = null; #release = null; #queue = null; #robbing = false
  #heardAt = 0; #silence = null; #robberies = []

  // world: {onJoin, onMessage(message), onQuestion(message), onHold, onLost, isWaiting() → whether an answer is due}
  constructor(prefix, world) {
    this.#prefix = prefix
    this.#world = world
    document.addEventListener("freeze", () => this.#leave())
    document.addEventListener("resume", () => this.join())
    addEventListener("pagehide", () => this.#leave())
    addEventListener("pageshow", (event) => { if (event.persisted) this.join() })
    setInterval(() => this.#beat(), PATIENCE)
  }

  get isThere() { return this.#channel !== null }

  // A new name each time: the holder may still be about to forget the old one.
  join() {
    if (this.#channel) return
    this.id = uuid()
    const channel = this.#channel = new BroadcastChannel(`${this.#prefix}:tabs`)
    channel.onmessage = ({ data }) => { if (!data.to || data.to === this.id) this.#on(data) }
    this.#queueUp()
    const here = new Promise((resolve) => { this.#letGo = resolve })
    const greet = () => {
      if (channel === this.#channel && !this.isHolder) this.#world.onJoin()
      return here
    }
    navigator.locks.request(`${this.#prefix}:tab:${this.id}`, greet).catch((error) => console.error(error))
  }

  // Closed, frozen or cached by the browser: whoever waits takes over at once.
  #leave() {
    if (!this.#channel) return
    this.#lose()
    this.#queue.abort()
    this.#release?.()
    this.#letGo()
    this.#channel.close()
    this.#channel = this.#release = null
  }

  // Calls back once a tab has left, in whatever way. signal: of an AbortController.
  whenGone(tab, signal, then) {
    navigator.locks.request(`${this.#prefix}:tab:${tab}`, { signal }, then).catch(() => {})
  }

  rob() {
    if (this.#robbing || this.isHolder) return
    this.#robbing = true
    this.#queue.abort()
    this.#claim({ steal: true })
  }

  #queueUp() {
    this.#queue = new AbortController()
    this.#claim({ signal: this.#queue.signal })
  }

  #claim(options) {
    let held = false
    navigator.locks.request(`${this.#prefix}:connection`, options, () => {
      held = true
      return new Promise((release) => this.#hold(release))
    }).catch((error) => {
      if (held) this.#onRobbed()
      else if (error.name !== "AbortError") this.#hold(() => {}) // locks are forbidden here: alone, then
    })
  }

  #hold(release) {
    this.#robbing = false
    if (!this.#channel) return release()
    this.#release = release
    this.isHolder = true
    this.#heard()
    this.#world.onHold()
  }

  #onRobbed() {
    if (!this.isHolder) return
    this.#release = null
    this.#lose()
    this.#queueUp()
    this.#world.onJoin()
  }

  #lose() {
    this.#heard()
    this.isHolder = false
    this.#world.onLost()
  }

  // --- what they say ---

  tell(message) { this.#channel?.postMessage({ ...message, from: this.id }) }

  // The holder answers at once, and be it that it got it. Timers that are late say nothing about it.
  ask(message) {
    this.tell({ ...message, isQuestion: true })
    if (this.#silence !== null || !this.#channel) return
    const lately = this.#robberies.filter((at) => at > performance.now() - 60000).length
    const patience = Math.min(LONGEST_PATIENCE, SILENCE * 2 ** lately)
    const due = performance.now() + patience
    this.#silence = setTimeout(() => {
      this.#silence = null
      if (performance.now() - due > LATE) return this.#world.onJoin()
      this.#robberies.push(performance.now())
      this.rob()
    }, patience)
  }

  #on(message) {
    if (!message.isQuestion) {
      if (!this.isHolder) this.#heard()
      return this.#world.onMessage(message)
    }
    if (!this.isHolder) return
    this.tell({ type: "got", to: message.from })
    this.#world.onQuestion(message)
  }

  #heard() {
    this.#heardAt = performance.now()
    clearTimeout(this.#silence)
    this.#silence = null
  }

  // Only a visible tab looks after a holder that says nothing, and sooner while it waits for something.
  #beat() {
    if (this.isHolder || !this.#channel || document.hidden) return
    const limit = this.#world.isWaiting() ? PATIENCE : IDLE
    if (performance.now() - this.#heardAt > limit) this.#world.onJoin()
  }
}
