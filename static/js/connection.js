// The connection: holds the record, feeds events to the state machine, and does what it answers. It knows both
// transports; whoever is above it sees one connection. Its cursors make overlapping transports harmless.

import { proof } from "./delays.js"
import { QualityWatch } from "./quality.js"
import { isConnected, newRecord, step } from "./states.js"
import { publish } from "./status.js"
import { NetworkMemory, Presence, delivery, latency, listen, steadyClock } from "./surroundings.js"
import { Cause } from "./transports/cause.js"
import { Rewriters, isWhole } from "./transports/integrity.js"
import { PollingTransport } from "./transports/polling.js"
import { ackOf, refusalOf } from "./transports/posts.js"
import { WebSocketTransport } from "./transports/websocket.js"

const SLEPT = 3000

export class Connection {
  #config; #states; #record; #websocket; #polling
  #timer = null; #inbox = []; #busy = false
  #feeds = new Map(); #resyncs = new Map(); #resyncedAt = 0; #flights = new Map(); #presence; #memory; #quality; #cause
  view = null // {apply(feed, element) → false to start that feed over, forget(feed), gone(feed), isAwaiting()}
  reports = null // {add(report)}
  outbox = null // {settled(id, outcome)}: what is acknowledged late, after its flight had ended
  onChange = publish // (record)
  rewriters = null // which networks rewrite HTML (transports/integrity.js)
  replaces = "" // the name of the socket that the next one takes the place of: the server closes it

  // prefix: of what is kept in localStorage
  constructor(config, states, prefix) {
    this.#memory = new NetworkMemory(prefix, config, (data) => this.#report("network", { data }))
    this.rewriters = new Rewriters(prefix, config)
    const { is_doubtful, killGap } = this.#memory.lesson
    this.#config = { latency_ms: latency(), is_doubtful, ...config }
    this.#states = states
    this.#record = { ...newRecord(config), killGap }
    this.#presence = new Presence(() => this.#hasten())
    this.#cause = new Cause(config, (event) => this.dispatch(event))
    const world = {
      on: (event) => this.dispatch(this.#cause.excuse(event)),
      receive: (element, transport, isArmoured) => this.#receive(element, transport, isArmoured),
      resync: () => this.#subscribe(Object.fromEntries(this.#feeds)),
      rewriters: this.rewriters,
      plan: () => ({ epoch: document.body.dataset.epoch ?? "", mark: document.body.dataset.mark ?? "", feeds: Object.fromEntries(this.#feeds) }),
      activity: (awaiting) => this.#activity(awaiting),
      heartbeat: config.heartbeat_ms,
      triggers: config.predict,
      paced: () => this.#publish(),
    }
    let maxMessage = config.ws_max_message
    const socketUrl = new URL(config.ws_url, location.href)
    socketUrl.protocol = socketUrl.protocol.replace("http", "ws")
    const address = () => socketUrl.href + (this.replaces && `?replaces=${this.replaces}`)
    this.#websocket = new WebSocketTransport(address, { ...world, maxMessage: () => maxMessage })
    this.#polling = new PollingTransport(config, world)
    this.#quality = new QualityWatch({
      on: world.on, read: () => delivery(this.#record, this.pace), report: (type, facts) => this.#report(type, facts),
    })
    this.onHello = (element) => {
      maxMessage = Number(element.getAttribute("max-message")) || maxMessage
      this.#cause.noteDrill(element.getAttribute("drill-ms"))
      this.replaces = element.getAttribute("connection") ?? ""
    }
  }

  get record() { return { ...this.#record } }

  // Messages flow, and the server has asked for no pause.
  get mayAsk() { return isConnected(this.#record.status) && this.#record.notBefore <= steadyClock() }

  // To show only: how polls are paced now.
  get pace() { return this.#polling.pace }

  start() {
    listen((type) => this.dispatch({ type }), () => this.#reborn(), this.#config.predict.includes("network"))
    if (!navigator.onLine) this.dispatch({ type: "offline" })
    this.dispatch({ type: document.hidden ? "hidden" : "wake" })
    this.dispatch({ type: "start" })
  }

  retry() { this.dispatch({ type: "retry" }) }

  follow(feed, cursor) {
    this.#feeds.set(feed, cursor)
    if (this.#record.status !== "disconnected") this.#subscribe({ [feed]: cursor })
  }

  unfollow(feed) {
    if (!this.#feeds.delete(feed) || this.#record.status === "disconnected") return
    this.#websocket.unsubscribe(feed)
    this.#polling.subscribe()
  }

  // Another tab's connection carries on: this one ends without a word. What is in flight goes by POST.
  pause() {
    this.dispatch({ type: "stop" })
    this.#feeds.clear()
  }

  // → {ok, ack} | {refused: code, words} | {retry: reason, advice_ms}, by whatever transport carries.
  deliver(entry) {
    return new Promise((resolve) => {
      const flight = { entry, resolve, byWebSocket: false }
      this.#flights.set(entry.id, flight)
      const socket = this.#record.status === "connected" && this.#record.ws === "up" && !entry.create
      flight.byWebSocket = socket && this.#websocket.send(entry)
      if (!flight.byWebSocket) this.#post(flight)
      this.#presence.use()
      this.#hasten()
      this.#polling.hasten()
    })
  }

  // The one function that changes the record. Events that come up meanwhile wait their turn.
  dispatch(event) {
    this.#inbox.push(event)
    if (this.#busy) return
    this.#busy = true
    try {
      while (this.#inbox.length) this.#take(this.#inbox.shift())
    } finally {
      this.#busy = false
    }
    this.#schedule()
  }

  #take(event) {
    const before = this.#record
    const [after, actions] = step(this.#states, before, event, steadyClock(), this.#config, Math.random)
    this.#record = after
    this.#quality.note(event, before, after)
    if (event.type === "ws_ready" || event.type === "online" || event.type === "retry") this.#cause.forget()
    this.#memory.note(before, after, this.#cause.isSure(after.wsReason))
    for (const action of actions) {
      try { this.#do(action) } catch (error) { console.error(error) }
    }
    if (event.type === "stop") return this.#publish()
    if (after.status !== before.status) this.#report("state", { from: before.status, to: after.status })
    else if (event.type === "ws_suspect") this.#report("suspect", { reason: event.trigger })
    const { foretold, killGap } = after
    if (foretold !== before.foretold) this.#report("predict", { reason: foretold.trigger, data: foretold })
    if (killGap !== before.killGap) this.#report("idle-kill", { data: { killGap } })
    const shown = (record) => JSON.stringify({ ...record, timers: null })
    if (shown(before) !== shown(after)) this.#publish()
    this.#cause.explain(after)
  }

  #do(action) {
    if (action === "open_websocket") this.#websocket.open(proof(this.#record, steadyClock()), this.#record.killGap)
    else if (action === "close_websocket") {
      this.#websocket.close()
      this.#repost()
    } else if (action === "start_poll") this.#polling.open()
    else if (action === "restart_poll") this.#polling.verify()
    else if (action === "stop_poll") this.#polling.close()
    else if (action === "verify") this.#websocket.verify()
    else if (action === "resend") this.#repost()
  }

  #repost() { for (const flight of [...this.#flights.values()]) if (flight.byWebSocket) this.#post(flight) }

  // By HTTP, but not before the moment that the server asked for.
  #post(flight) {
    flight.byWebSocket = false
    const { entry } = flight
    const left = this.#record.notBefore - steadyClock()
    if (left > 0) return this.#land(entry.id, { retry: "rate-limited", advice_ms: left })
    const sent = this.#polling.send(entry).catch((error) => console.error(error) ?? { retry: "error" })
    sent.then((outcome) => this.#land(entry.id, outcome))
  }

  #land(id, outcome) {
    const flight = this.#flights.get(id)
    this.#flights.delete(id)
    this.#websocket.settled(id)
    if (flight) flight.resolve(outcome)
    else if (!outcome.retry) this.outbox?.settled(id, outcome)
  }

  // An element from the server. True if it moved a cursor.
  #receive(element, transport, isArmoured = false) {
    const feed = element.getAttribute("feed")
    switch (element.localName) {
      case "chat-hello":
        if (!isMine(element)) return this.dispatch({ type: "signed_out", reason: "signed-out" })
        this.onHello(element)
        return this.#adoptEpoch(element.getAttribute("epoch"))
      case "chat-feed": return this.#applyFeed(feed, element, transport, isArmoured)
      case "chat-ack": return this.#land(element.getAttribute("client-id"), { ok: true, ack: ackOf(element) })
      case "chat-refused": return this.#land(element.getAttribute("client-id"), refusalOf(element))
      case "chat-reload":
        this.#adoptEpoch(element.getAttribute("epoch"))
        this.#adoptHistory(element)
        return this.#restart(feed)
      case "chat-drill": return this.#cause.noteDrill(element.getAttribute("ms"))
      case "chat-gone":
        this.#feeds.delete(feed)
        this.view?.gone(feed)
        return true
      default: console.error(element.localName, element.getAttribute("code"), element.textContent)
    }
  }

  // Another epoch is another database: what is shown is of no use as a starting point.
  #adoptEpoch(epoch) {
    if (!epoch || epoch === document.body.dataset.epoch) return
    document.body.dataset.epoch = epoch
    for (const feed of this.#feeds.keys()) this.#forget(feed)
  }

  // What is shown has a future that the server lost: an older copy of its database was put back.
  #adoptHistory(element) {
    if (!element.hasAttribute("mark")) return
    document.body.dataset.mark = element.getAttribute("mark")
    if (element.getAttribute("reason") === "history") for (const feed of this.#feeds.keys()) this.#forget(feed)
  }

  #forget(feed) {
    this.#feeds.set(feed, 0)
    this.view?.forget(feed)
  }

  #restart(feed) {
    if (!this.#feeds.has(feed)) return false
    this.#forget(feed)
    this.#resync(feed)
    return false
  }

  #applyFeed(feed, element, transport, isArmoured) {
    const cursor = this.#feeds.get(feed)
    const from = Number(element.getAttribute("from"))
    const to = Number(element.getAttribute("to"))
    const reset = element.hasAttribute("reset")
    if (cursor === undefined) return false
    if (from > cursor && !reset) return this.#resync(feed)
    if (to <= cursor) return false // also a late reset: it knows less than what is shown
    if (!isArmoured && ![...element.children].every(isWhole)) {
      this.rewriters.note()
      this.#polling.mend(transport)
      return false
    }
    if (this.view?.apply(feed, element) === false) return this.#restart(feed)
    this.#feeds.set(feed, to)
    noteMark(element)
    if (transport === "polling" && this.#record.ws === "suspect") this.#websocket.expect()
    return to > cursor
  }

  // Ask again from the cursor; at once, but never more than once a second for a feed.
  #resync(feed) {
    if (this.#resyncs.has(feed)) return false
    const wait = steadyClock() - this.#resyncedAt > 1000 ? 0 : 1000
    this.#resyncedAt = steadyClock() + wait
    this.#resyncs.set(feed, setTimeout(() => {
      this.#resyncs.delete(feed)
      if (this.#feeds.has(feed)) this.#subscribe({ [feed]: this.#feeds.get(feed) })
    }, wait))
    return false
  }

  #subscribe(feeds) {
    this.#websocket.subscribe(feeds)
    this.#polling.subscribe(feeds)
  }

  // How closely to watch: an answer is awaited, or how long ago the person did something.
  #activity(awaiting) {
    const { level } = this.#presence
    if (level === "hidden") return level
    if (this.#record.offline) return "offline"
    const isAwaiting = awaiting || this.#flights.size > 0 || this.view?.isAwaiting()
    this.#noteLevel(isAwaiting ? "active" : level)
    return isAwaiting ? "awaiting" : level
  }

  #noteLevel(level) {
    const { activity } = this.#record
    if (activity !== level && activity !== "hidden") this.dispatch({ type: "activity", level })
  }

  // The person did something: whatever was slowed down comes sooner.
  #hasten() {
    if (["active", "hidden"].includes(this.#record.activity)) return
    this.#noteLevel("active")
    this.#websocket.pace()
    this.#polling.hasten()
  }

  // Back from the browser's cache of pages: whatever the old socket seems to be, it is of another time.
  #reborn() {
    this.#websocket.close()
    this.dispatch({ type: "ws_closed", reason: "socket-closed", advice_ms: 0 }) // our own doing: no blame
    this.dispatch({ type: "wake" })
  }

  #schedule() {
    clearTimeout(this.#timer)
    const due = Math.min(...Object.values(this.#record.timers))
    if (!Number.isFinite(due)) return
    const delay = Math.max(0, due - steadyClock())
    const wanted = Date.now() + delay // only this clock goes on while a machine sleeps
    this.#timer = setTimeout(() => {
      // Far too late: this machine slept or was throttled. Nothing that "timed out" meanwhile says anything.
      const slept = Date.now() - wanted > SLEPT && !isConnected(this.#record.status)
      if (!slept) return this.dispatch({ type: "tick" })
      this.dispatch({ type: "wake" })
      if (document.hidden) this.dispatch({ type: "hidden" })
      this.dispatch({ type: "tick" })
    }, delay)
  }

  #publish() { this.onChange(this.record) }

  // What the server's statistics learn of this.
  #report(type, { data, ...facts }) {
    const { connectionType, reason, wsReason, rtt, reconnectAttempts } = this.#record
    this.reports?.add({
      type, from: null, to: null, reason: reason ?? wsReason, ...facts, transport: connectionType,
      data: { rtt, attempts: reconnectAttempts, ...data },
    })
  }
}

// Up to which change everything here is shown: the page's mark, which only grows within one history.
export function noteMark(element) {
  const [history, change] = (element.getAttribute("mark") ?? "").split(".")
  if (!history) return
  const [own, shown] = (document.body.dataset.mark ?? "").split(".")
  if (history !== own || Number(change) > Number(shown)) document.body.dataset.mark = `${history}.${change}`
}

// Somebody else may have signed in from another tab.
const isMine = (element) => (element.getAttribute("person") ?? "") === (document.body.dataset.person ?? "")
