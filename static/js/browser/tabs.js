// The tabs of one person in one browser: leader election by a Web Lock (its owner is the holder), and messages over a
// BroadcastChannel. Knows nothing of connections.

import { uuid } from "./uuid.js"

const PERIOD = 1000 // ms between checks of the holder
const TIMEOUT = 900 // of a question to the holder, then its lock is stolen; doubled for each theft of the last minute
const LONGEST_TIMEOUT = 8000
const LATE = 500 // a timer that is later was throttled, and proves nothing about the holder
const IDLE = 3000 // silence of the holder before a visible tab with nothing to wait for asks it

const now = () => performance.now()

export class Tabs {
  id = ""
  isHolder = false
  #prefix; #owner; #channel = null
  #unlock = null; #release = null; #queue = null; #robbing = false
  #heardAt = 0; #timer = null; #robberies = []

  // owner: {onJoin, onMessage(message), onQuestion(message), onHold, onLost, isWaiting() → true if an answer is due}
  constructor(prefix, owner) {
    this.#prefix = prefix
    this.#owner = owner
    document.addEventListener("freeze", () => this.#leave())
    document.addEventListener("resume", () => this.join())
    addEventListener("pagehide", () => this.#leave())
    addEventListener("pageshow", (event) => { if (event.persisted) this.join() })
    setInterval(() => this.#check(), PERIOD)
  }

  get isThere() { return this.#channel !== null }

  // A new id each time: the holder may not have forgotten the old one yet.
  join() {
    if (this.#channel) return
    this.id = uuid()
    const channel = this.#channel = new BroadcastChannel(`${this.#prefix}:tabs`)
    channel.onmessage = ({ data }) => { if (!data.to || data.to === this.id) this.#onMessage(data) }
    this.#queueUp()
    const here = new Promise((resolve) => { this.#unlock = resolve })
    const greet = () => {
      if (channel === this.#channel && !this.isHolder) this.#owner.onJoin()
      return here
    }
    navigator.locks.request(`${this.#prefix}:tab:${this.id}`, greet).catch((error) => console.error(error))
  }

  // Closed, frozen or in the back/forward cache: releases the lock, so that another tab takes over at once.
  #leave() {
    if (!this.#channel) return
    this.#lose()
    this.#queue.abort()
    this.#release?.()
    this.#unlock()
    this.#channel.close()
    this.#channel = this.#release = null
  }

  // Calls back once a tab has left or crashed. signal: of an AbortController.
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
      else if (error.name !== "AbortError") this.#hold(() => {}) // locks are forbidden here: hold alone
    })
  }

  #hold(release) {
    this.#robbing = false
    if (!this.#channel) return release()
    this.#release = release
    this.isHolder = true
    this.#heard()
    this.#owner.onHold()
  }

  #onRobbed() {
    if (!this.isHolder) return
    this.#release = null
    this.#lose()
    this.#queueUp()
    this.#owner.onJoin()
  }

  #lose() {
    this.#heard()
    this.isHolder = false
    this.#owner.onLost()
  }

  // --- messages ---

  tell(message) { this.#channel?.postMessage({ ...message, from: this.id }) }

  // The holder answers at once, at least with "got"; if it does not, its lock is stolen.
  ask(message) {
    this.tell({ ...message, isQuestion: true })
    if (this.#timer !== null || !this.#channel) return
    const recent = this.#robberies.filter((at) => at > now() - 60000).length
    const timeout = Math.min(LONGEST_TIMEOUT, TIMEOUT * 2 ** recent)
    const due = now() + timeout
    this.#timer = setTimeout(() => {
      this.#timer = null
      if (now() - due > LATE) return this.#owner.onJoin()
      this.#robberies.push(now())
      this.rob()
    }, timeout)
  }

  #onMessage(message) {
    if (!message.isQuestion) {
      if (!this.isHolder) this.#heard()
      return this.#owner.onMessage(message)
    }
    if (!this.isHolder) return
    this.tell({ type: "got", to: message.from })
    this.#owner.onQuestion(message)
  }

  #heard() {
    this.#heardAt = now()
    clearTimeout(this.#timer)
    this.#timer = null
  }

  // Only a visible tab checks a silent holder, sooner while it waits for an answer.
  #check() {
    if (this.isHolder || !this.#channel || document.hidden) return
    const limit = this.#owner.isWaiting() ? PERIOD : IDLE
    if (now() - this.#heardAt > limit) this.#owner.onJoin()
  }
}
