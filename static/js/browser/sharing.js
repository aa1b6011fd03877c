// One connection for all tabs of a person in one browser: the tab that holds the lock runs it and serves the others.
// Each tab keeps its own feeds and cursors, so lost, duplicate or late messages between tabs are repaired just as those
// between transports. Same interface as Connection.

import { steadyClock } from "./clock.js"
import { Connection } from "../connection/connection.js"
import { Feeds } from "../connection/feeds.js"
import { isConnected, newRecord } from "../connection/states.js"
import { publish } from "../chat/status.js"
import { Tabs } from "./tabs.js"

const GRACE = 1000 // ms; a shorter take-over is not shown
const HANDOVER = 1000 // ms that a hidden holder waits before it hands over: a glance at another tab costs nothing
const SAME_TIME = 1000 // ms; smaller clock differences are ignored
const CANDIDATE = 3000 // ms that the next holder has to connect before it takes over anyway

// Plain http hosts and old browsers have no Web Locks: each tab then connects alone.
export function connectionFor(prefix, config, states, world) {
  const connection = new Connection(config, states, world)
  connection.onChange = publish
  return navigator.locks && window.BroadcastChannel ? new SharedConnection(prefix, connection, config, world) : connection
}

class SharedConnection {
  #prefix; #world; #own; #tabs; #record; #pace = null; #queued = 0
  #feeds; #pending = new Map(); #n = 0; #awaiting = false
  #reign = 0; #socket = ""; #isFresh = true; #isCandidate = false; #hasStarted = false; #graceUntil = 0; #timer = null
  #served = new Map(); #cursors = new Map(); #flights = new Map(); #watching = null // while this tab holds
  outbox = null

  constructor(prefix, connection, config, world) {
    this.#prefix = prefix
    this.#world = world
    this.#feeds = new Feeds(world, (feed, cursor) => this.#subscribe(feed, cursor))
    this.#own = connection
    this.#record = newRecord(config)
    this.#tabs = new Tabs(`${prefix}:2`, { // by the protocol's revision: what an older page cannot read, it shall not get
      onJoin: () => this.#join(),
      onMessage: (message) => this.#onMessage(message),
      onQuestion: (message) => this.#onQuestion(message),
      onHold: () => this.#onHold(),
      onLost: () => this.#onLost(),
      isWaiting: () => this.#pending.size > 0 || this.#isAwaiting,
    })
    const all = (message) => [this.#tabs.tell(message), this.#onMessage(message)]
    connection.onChange = (record) => this.#onOwn(record)
    connection.outbox = { settled: (id, outcome) => all({ type: "settled", id, outcome }) }
    connection.view = {
      apply: (feed, element) => this.#relay(feed, element),
      forget: (feed) => all({ type: "forget", feed, ...this.#history }),
      gone: (feed) => all({ type: "gone", feed }),
      isAwaiting: () => this.#isAwaiting || [...this.#served.values()].some((tab) => tab.awaiting),
    }
  }

  set view(view) { this.#feeds.view = view }
  get #isAwaiting() { return Boolean(this.#feeds.view?.isAwaiting()) }
  get #history() { return { epoch: this.#world.page.epoch, mark: this.#world.page.mark ?? "" } }
  get reports() { return this.#own.reports }
  set reports(reports) { this.#own.reports = reports }
  leave() { this.#own.leave() }
  get rewriters() { return this.#own.rewriters }
  get access() { return this.#own.access }
  get record() { return { ...this.#record, queued: this.#queued } }
  get mayAsk() { return isConnected(this.#record.status) && this.#record.notBefore <= steadyClock() }
  get pace() { return this.#tabs.isHolder ? this.#own.pace : this.#pace ?? this.#own.pace }

  start() {
    document.addEventListener("visibilitychange", () => {
      if (!this.#tabs.isHolder) this.#join({})
      else if (document.hidden) this.#offer()
    })
    this.#tabs.join()
  }

  retry() {
    if (this.#tabs.isHolder) this.#own.retry()
    else this.#tabs.ask({ type: "retry" })
  }

  dispatch(event) {
    if (event.type === "queue") this.#queued = event.queued
    if (this.#tabs.isHolder) this.#own.dispatch(event)
    else if (this.#reign) publish(this.record)
  }

  follow(feed, cursor) {
    this.#feeds.follow(feed, cursor)
    this.#subscribe(feed, cursor)
  }

  // Kept until its outcome arrives, and repeated to each new holder: the server recognizes a message by its id.
  deliver(entry) {
    return new Promise((resolve) => {
      const n = ++this.#n
      this.#pending.set(n, { entry, resolve })
      this.#send(n, entry)
    })
  }

  #resend() { for (const [n, { entry }] of this.#pending) this.#send(n, entry) }

  #send(n, entry) {
    if (this.#tabs.isHolder) this.#sendOnce(entry).then((outcome) => this.#resolve(n, outcome))
    else this.#tabs.ask({ type: "deliver", n, entry })
  }

  #resolve(n, outcome) {
    this.#pending.get(n)?.resolve(outcome)
    this.#pending.delete(n)
  }

  // --- holding ---

  #onHold() {
    const isRunning = this.#isCandidate
    this.#isCandidate = this.#isFresh = false
    this.#reign = nextReign(this.#prefix, this.#reign)
    this.#served.clear()
    this.#watching = new AbortController()
    this.#graceUntil = performance.now() + GRACE
    if (!isRunning) this.#connect(this.#socket)
    this.#onOwn(this.#own.record)
    this.#resend()
    if (document.hidden) this.#offer()
  }

  #onLost() {
    clearTimeout(this.#timer)
    this.#watching?.abort()
    this.#cursors.clear()
    this.#isCandidate = false
    this.#isFresh = true
    this.#own.pause()
  }

  // replaced: the id of an abandoned socket, for the server to close
  #connect(replaced) {
    if (replaced) this.#own.replaces = replaced
    for (const [feed, cursor] of Object.entries(this.#feeds.cursors)) this.#follow(feed, cursor)
    if (this.#hasStarted) return this.#own.dispatch({ type: "start" })
    this.#hasStarted = true
    this.#own.start()
  }

  #onOwn(record) {
    if (this.#isCandidate && isConnected(record.status)) this.#tabs.rob()
    if (!this.#tabs.isHolder) return
    clearTimeout(this.#timer)
    const isStarting = record.status === "connecting" || (record.status === "disconnected" && !record.reason)
    const grace = this.#graceUntil - performance.now()
    if (isStarting && isConnected(this.#record.status) && grace > 0) {
      this.#timer = setTimeout(() => this.#onOwn(this.#own.record), grace)
    } else this.#record = record
    this.#share()
    publish(this.record)
  }

  #share(to) {
    const { record, pace } = this
    const { protocol } = this.#world.page
    this.#tabs.tell({ type: "record", to, reign: this.#reign, at: steadyClock(), record, pace, socket: this.#own.replaces, protocol })
  }

  // Serialized first: applying moves the element's children into this page.
  #relay(feed, element) {
    this.#cursors.set(feed, Number(element.getAttribute("to")))
    if (this.#isServed(feed)) this.#tabs.tell({ type: "feed", feed, html: element.outerHTML })
    this.#apply(feed, element)
    return true
  }

  #isServed(feed) { return [...this.#served.values()].some((tab) => tab.feeds.has(feed)) }

  #onTab({ from, feeds, epoch, mark, visible, awaiting, isFresh }) {
    if (!this.#served.has(from)) {
      this.#served.set(from, { feeds: new Set() })
      this.#tabs.whenGone(from, this.#watching.signal, () => this.#forgetTab(from))
    }
    const tab = Object.assign(this.#served.get(from), { visible, awaiting })
    const own = this.#history
    const isOurs = epoch === own.epoch && historyOf(mark) === historyOf(own.mark) // else its cursors are invalid
    for (const [feed, cursor] of Object.entries(feeds)) {
      tab.feeds.add(feed)
      if (!isOurs) this.#tabs.tell({ type: "forget", to: from, feed, ...own })
      this.#follow(feed, isOurs ? cursor : 0)
    }
    // Signed out here, but that page was just loaded by a signed-in person.
    if (isFresh && this.#own.record.status === "disconnected") this.#own.retry()
    this.#share(from)
    if (visible && document.hidden) this.#offer()
  }

  // Follows from the lowest cursor of all tabs; the others skip known revisions.
  #follow(feed, cursor) {
    if (cursor >= this.#cursors.get(feed)) return
    this.#cursors.set(feed, cursor)
    this.#own.follow(feed, cursor)
  }

  #forgetTab(id) {
    const { feeds } = this.#served.get(id)
    this.#served.delete(id)
    for (const feed of feeds) {
      if (this.#feeds.has(feed) || this.#isServed(feed)) continue
      this.#cursors.delete(feed)
      this.#own.unfollow(feed)
    }
  }

  // One delivery for each message, even if several tabs loaded it.
  #sendOnce(entry) {
    const flight = this.#flights.get(entry.id) ?? this.#own.deliver(entry).finally(() => this.#flights.delete(entry.id))
    this.#flights.set(entry.id, flight)
    return flight
  }

  // A visible tab connects first and then takes the lock: no gap.
  #offer() {
    setTimeout(() => {
      const [to] = [...this.#served].find(([, tab]) => tab.visible) ?? []
      if (this.#tabs.isHolder && document.hidden && to) this.#tabs.tell({ type: "yours", to })
    }, HANDOVER)
  }

  #accept() {
    if (document.hidden || this.#tabs.isHolder || this.#isCandidate) return
    this.#isCandidate = true
    this.#timer = setTimeout(() => { if (this.#isCandidate) this.#tabs.rob() }, CANDIDATE)
    this.#connect("")
  }

  // --- between tabs ---

  #join(feeds = this.#feeds.cursors) {
    this.#awaiting = this.#isAwaiting
    const state = { ...this.#history, visible: !document.hidden, awaiting: this.#awaiting, isFresh: this.#isFresh }
    this.#tabs.ask({ type: "tab", feeds, ...state })
  }

  #onQuestion({ type, n, entry, ...message }) {
    if (type === "tab") this.#onTab(message)
    else if (type === "retry") this.#own.retry()
    else this.#sendOnce(entry).then((outcome) => this.#tabs.tell({ type: "outcome", to: message.from, n, outcome }))
  }

  #onMessage(message) {
    const { type, feed } = message
    if (type === "record") this.#onRecord(message)
    else if (type === "feed" && !this.#tabs.isHolder) this.#apply(feed, this.#world.parse(message.html)[0])
    else if (type === "outcome") this.#resolve(message.n, message.outcome)
    else if (type === "settled") this.outbox?.settled(message.id, message.outcome)
    else if (type === "yours") this.#accept()
    else if (type === "forget") this.#onForget(message)
    else if (type === "gone") this.#onGone(feed)
  }

  #onForget({ feed, epoch, mark }) {
    if (this.#cursors.has(feed)) this.#cursors.set(feed, 0)
    if (!this.#feeds.has(feed)) return
    Object.assign(this.#world.page, { epoch, mark })
    this.#feeds.forget(feed)
  }

  #onGone(feed) {
    this.#cursors.delete(feed)
    this.#feeds.gone(feed)
  }

  #onRecord({ reign, at, record, pace, socket, protocol }) {
    if (this.#tabs.isHolder || reign < this.#reign) return
    if (protocol) this.#world.page.protocol = protocol
    const isNew = reign !== this.#reign || this.#isFresh
    this.#isFresh = false
    ;[this.#record, this.#pace, this.#socket, this.#reign] = [moved(record, steadyClock() - at), pace, socket, reign]
    publish(this.record)
    if (!isNew) return
    this.#join()
    this.#resend()
  }

  // --- this tab's feeds ---

  #subscribe(feed, cursor) {
    if (this.#tabs.isHolder || this.#isCandidate) this.#follow(feed, cursor)
    if (!this.#tabs.isHolder && this.#tabs.isThere) this.#join({ [feed]: cursor })
  }

  #apply(feed, element) {
    const taken = this.#feeds.take(feed, element, { isOthers: true })
    if (taken === "applied" && !this.#tabs.isHolder && this.#awaiting !== this.#isAwaiting) this.#join({})
  }
}

// Each holder has a higher number, so that late messages of an earlier one are ignored. A counter, because clocks can
// be set back.
function nextReign(prefix, heard) {
  const key = `${prefix}:reign`
  try {
    const reign = Math.max(Number(localStorage.getItem(key)) || Date.now(), heard) + 1
    localStorage.setItem(key, reign)
    return reign
  } catch {
    return Math.max(Date.now(), heard + 1)
  }
}

// Pages that loaded before and after the system clock was set disagree about the time.
function moved(record, by) {
  if (Math.abs(by) < SAME_TIME) return record
  const shift = (at) => at ? at + by : at
  const { nextRetryAt, lastConnected, notBefore } = record
  return { ...record, nextRetryAt: shift(nextRetryAt), lastConnected: shift(lastConnected), notBefore: shift(notBefore) }
}

const historyOf = (mark) => (mark ?? "").split(".")[0]
