// One connection for all tabs of a person in one browser, whichever transport it is: the tab that holds runs it and
// serves the others. Each tab keeps its own feeds and cursors, so what gets lost, doubled or late between tabs is put
// right as it is between transports. Same interface as Connection.

import { steadyClock } from "./clock.js"
import { Connection } from "../connection/connection.js"
import { Feeds } from "../connection/feeds.js"
import { isConnected, newRecord } from "../connection/states.js"
import { publish } from "../chat/status.js"
import { Tabs } from "./tabs.js"

const GRACE = 1000 // a take-over that ends within this is not shown
const HANDOVER = 1000 // so long a holder stays hidden before it hands over: a glance at another tab costs nothing
const SAME_TIME = 1000 // clocks that differ by less are the same
const CANDIDATE = 3000 // and so long the next one has to connect before it takes over anyway

// Plain http hosts and old browsers have no Web Locks: there each tab has a connection of its own.
export function connectionFor(prefix, config, states, world) {
  const connection = new Connection(config, states, world)
  connection.onChange = publish
  return navigator.locks && window.BroadcastChannel ? new SharedConnection(prefix, connection, config, world) : connection
}

class SharedConnection {
  #prefix; #world; #own; #tabs; #record; #pace = null; #queued = 0
  #feeds; #pending = new Map(); #n = 0; #awaiting = false
  #reign = 0; #socket = ""; #isFresh = true; #isCandidate = false; #hasStarted = false; #graceUntil = 0; #timer = null
  #served = new Map(); #heads = new Map(); #flights = new Map(); #watching = null // while this tab holds
  outbox = null

  constructor(prefix, connection, config, world) {
    this.#prefix = prefix
    this.#world = world
    this.#feeds = new Feeds(world, (feed, cursor) => this.#subscribe(feed, cursor))
    this.#own = connection
    this.#record = newRecord(config)
    this.#tabs = new Tabs(prefix, {
      onJoin: () => this.#greet(),
      onMessage: (message) => this.#on(message),
      onQuestion: (message) => this.#answer(message),
      onHold: () => this.#onHold(),
      onLost: () => this.#onLost(),
      isWaiting: () => this.#pending.size > 0 || this.#isAwaiting,
    })
    const both = (message) => [this.#tabs.tell(message), this.#on(message)]
    connection.onChange = (record) => this.#onOwn(record)
    connection.outbox = { settled: (id, outcome) => both({ type: "settled", id, outcome }) }
    connection.view = {
      apply: (feed, element) => this.#spread(feed, element),
      forget: (feed) => both({ type: "forget", feed, ...this.#past }),
      gone: (feed) => both({ type: "gone", feed }),
      isAwaiting: () => this.#isAwaiting || [...this.#served.values()].some((tab) => tab.awaiting),
    }
  }

  set view(view) { this.#feeds.view = view }
  get #isAwaiting() { return Boolean(this.#feeds.view?.isAwaiting()) }
  get #past() { return { epoch: this.#world.page.epoch, mark: this.#world.page.mark ?? "" } }
  set reports(reports) { this.#own.reports = reports }
  get rewriters() { return this.#own.rewriters }
  get record() { return { ...this.#record, queued: this.#queued } }
  get mayAsk() { return isConnected(this.#record.status) && this.#record.notBefore <= steadyClock() }
  get pace() { return this.#tabs.isHolder ? this.#own.pace : this.#pace ?? this.#own.pace }

  start() {
    document.addEventListener("visibilitychange", () => {
      if (!this.#tabs.isHolder) this.#greet({})
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

  // Kept until an outcome is there, and sent again to each new holder: the server knows a message by its id.
  deliver(entry) {
    return new Promise((resolve) => {
      const n = ++this.#n
      this.#pending.set(n, { entry, resolve })
      this.#pass(n, entry)
    })
  }

  #pass(n, entry) {
    if (this.#tabs.isHolder) this.#carry(entry).then((outcome) => this.#land(n, outcome))
    else this.#tabs.ask({ type: "deliver", n, entry })
  }

  #land(n, outcome) {
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
    if (!isRunning) this.#run(this.#socket)
    this.#onOwn(this.#own.record)
    for (const [n, { entry }] of this.#pending) this.#pass(n, entry)
    if (document.hidden) this.#offer()
  }

  #onLost() {
    clearTimeout(this.#timer)
    this.#watching?.abort()
    this.#heads.clear()
    this.#isCandidate = false
    this.#isFresh = true
    this.#own.pause()
  }

  // replaced: the name of a socket that nobody minds any more, for the server to close
  #run(replaced) {
    if (replaced) this.#own.replaces = replaced
    for (const [feed, cursor] of Object.entries(this.#feeds.cursors)) this.#pursue(feed, cursor)
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
    this.#announce()
    publish(this.record)
  }

  #announce(to) {
    const { record, pace } = this
    this.#tabs.tell({ type: "record", to, reign: this.#reign, at: steadyClock(), record, pace, socket: this.#own.replaces })
  }

  // Written out before this page takes the element's children into its own.
  #spread(feed, element) {
    this.#heads.set(feed, Number(element.getAttribute("to")))
    if (this.#isServed(feed)) this.#tabs.tell({ type: "feed", feed, html: element.outerHTML })
    this.#apply(feed, element)
    return true
  }

  #isServed(feed) { return [...this.#served.values()].some((tab) => tab.feeds.has(feed)) }

  #serve({ from, feeds, epoch, mark, visible, awaiting, isFresh }) {
    if (!this.#served.has(from)) {
      this.#served.set(from, { feeds: new Set() })
      this.#tabs.whenGone(from, this.#watching.signal, () => this.#forgetTab(from))
    }
    const tab = Object.assign(this.#served.get(from), { visible, awaiting })
    const own = this.#past
    const isOurs = epoch === own.epoch && historyOf(mark) === historyOf(own.mark) // else its cursors may mean nothing
    for (const [feed, cursor] of Object.entries(feeds)) {
      tab.feeds.add(feed)
      if (!isOurs) this.#tabs.tell({ type: "forget", to: from, feed, ...own })
      this.#pursue(feed, isOurs ? cursor : 0)
    }
    // Signed out here, but that page has just been served to somebody who is not.
    if (isFresh && this.#own.record.status === "disconnected") this.#own.retry()
    this.#announce(from)
    if (visible && document.hidden) this.#offer()
  }

  // From the cursor of whoever is behind; the others have that already, and its revisions say so.
  #pursue(feed, cursor) {
    if (cursor >= this.#heads.get(feed)) return
    this.#heads.set(feed, cursor)
    this.#own.follow(feed, cursor)
  }

  #forgetTab(id) {
    const { feeds } = this.#served.get(id)
    this.#served.delete(id)
    for (const feed of feeds) {
      if (this.#feeds.has(feed) || this.#isServed(feed)) continue
      this.#heads.delete(feed)
      this.#own.unfollow(feed)
    }
  }

  // One flight for each message, whichever tabs took it up.
  #carry(entry) {
    const flight = this.#flights.get(entry.id) ?? this.#own.deliver(entry).finally(() => this.#flights.delete(entry.id))
    this.#flights.set(entry.id, flight)
    return flight
  }

  // A visible tab connects first and then takes the lock, so there is no gap.
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
    this.#run("")
  }

  // --- between tabs ---

  #greet(feeds = this.#feeds.cursors) {
    this.#awaiting = this.#isAwaiting
    const state = { ...this.#past, visible: !document.hidden, awaiting: this.#awaiting, isFresh: this.#isFresh }
    this.#tabs.ask({ type: "tab", feeds, ...state })
  }

  #answer({ type, n, entry, ...message }) {
    if (type === "tab") this.#serve(message)
    else if (type === "retry") this.#own.retry()
    else this.#carry(entry).then((outcome) => this.#tabs.tell({ type: "outcome", to: message.from, n, outcome }))
  }

  #on(message) {
    const { type, feed } = message
    if (type === "record") this.#onRecord(message)
    else if (type === "feed" && !this.#tabs.isHolder) this.#apply(feed, this.#world.parse(message.html)[0])
    else if (type === "outcome") this.#land(message.n, message.outcome)
    else if (type === "settled") this.outbox?.settled(message.id, message.outcome)
    else if (type === "yours") this.#accept()
    else if (type === "forget") this.#onForget(message)
    else if (type === "gone") this.#onGone(feed)
  }

  #onForget({ feed, epoch, mark }) {
    if (this.#heads.has(feed)) this.#heads.set(feed, 0)
    if (!this.#feeds.has(feed)) return
    Object.assign(this.#world.page, { epoch, mark })
    this.#feeds.forget(feed)
  }

  #onGone(feed) {
    this.#heads.delete(feed)
    this.#feeds.gone(feed)
  }

  #onRecord({ reign, at, record, pace, socket }) {
    if (this.#tabs.isHolder || reign < this.#reign) return
    const isAnother = reign !== this.#reign || this.#isFresh
    this.#isFresh = false
    ;[this.#record, this.#pace, this.#socket, this.#reign] = [moved(record, steadyClock() - at), pace, socket, reign]
    publish(this.record)
    if (!isAnother) return
    this.#greet()
    for (const [n, { entry }] of this.#pending) this.#pass(n, entry)
  }

  // --- this tab's feeds ---

  #subscribe(feed, cursor) {
    if (this.#tabs.isHolder || this.#isCandidate) this.#pursue(feed, cursor)
    if (!this.#tabs.isHolder && this.#tabs.isThere) this.#greet({ [feed]: cursor })
  }

  #apply(feed, element) {
    const taken = this.#feeds.take(feed, element, { isOthers: true })
    if (taken === "applied" && !this.#tabs.isHolder && this.#awaiting !== this.#isAwaiting) this.#greet({})
  }
}

// Holders are counted, so that a late word of an earlier one is known: by no clock, which could be set back meanwhile.
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

// Pages that began before and after a clock was set disagree about what time it is.
function moved(record, by) {
  if (Math.abs(by) < SAME_TIME) return record
  const shift = (at) => at ? at + by : at
  const { nextRetryAt, lastConnected, notBefore } = record
  return { ...record, nextRetryAt: shift(nextRetryAt), lastConnected: shift(lastConnected), notBefore: shift(notBefore) }
}

const historyOf = (mark) => (mark ?? "").split(".")[0]
