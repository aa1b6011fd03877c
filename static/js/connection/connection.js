// The connection: holds the record, feeds events to the state machine, and does what it answers. It knows both
// transports; whoever is above it sees one connection. Its cursors make overlapping transports harmless. It knows the
// world through ports only (docs/architecture.md lists them; browser/world.js has those of a page).

import { Cause } from "./cause.js"
import { proof } from "./delays.js"
import { Feeds } from "./feeds.js"
import { NetworkMemory, Rewriters } from "./memory.js"
import { PollingTransport } from "./polling.js"
import { ackOf, refusalOf } from "./posts.js"
import { Presence } from "./presence.js"
import { QualityWatch } from "./quality.js"
import { isConnected, newRecord, step } from "./states.js"
import { WebSocketTransport } from "./websocket.js"

const SLEPT = 3000

export class Connection {
  #config; #states; #world; #record; #websocket; #polling
  #timer = null; #inbox = []; #busy = false
  #feeds; #flights = new Map(); #presence; #memory; #quality; #cause
  reports = null // {add(report)}
  outbox = null // {settled(id, outcome)}: what is acknowledged late, after its flight had ended
  onChange = () => {} // (record)
  rewriters = null // which networks rewrite HTML
  replaces = "" // the name of the socket that the next one takes the place of: the server closes it

  constructor(config, states, world) {
    this.#world = world
    this.#feeds = new Feeds(world, (feed, cursor) => this.#subscribe({ [feed]: cursor }))
    this.#memory = new NetworkMemory(world, config, (data) => this.#report("network", { data }))
    this.rewriters = new Rewriters(world, config)
    const { is_doubtful, killGap } = this.#memory.lesson
    this.#config = { latency_ms: world.latency, is_doubtful, ...config }
    this.#states = states
    this.#record = { ...newRecord(config), killGap }
    this.#presence = new Presence(world, () => this.#hasten())
    this.#cause = new Cause(config, world, (event) => this.dispatch(event))
    let maxMessage = config.ws_max_message
    const core = {
      on: (event) => this.dispatch(this.#cause.excuse(event)),
      receive: (element, transport, isArmoured) => this.receive(element, transport, isArmoured),
      resync: () => this.#subscribe(this.#feeds.cursors),
      rewriters: this.rewriters,
      plan: () => ({ epoch: world.page.epoch ?? "", mark: world.page.mark ?? "", feeds: this.#feeds.cursors }),
      activity: (awaiting) => this.#activity(awaiting),
      heartbeat: config.heartbeat_ms,
      triggers: config.predict,
      paced: () => this.#publish(),
      maxMessage: () => maxMessage,
      replaces: () => this.replaces,
    }
    this.#websocket = new WebSocketTransport(world, core)
    this.#polling = new PollingTransport(config, world, core)
    this.#quality = new QualityWatch(world, {
      on: core.on, read: () => this.#delivery(), report: (type, facts) => this.#report(type, facts),
    })
    this.onHello = (element) => {
      maxMessage = Number(element.getAttribute("max-message")) || maxMessage
      this.#cause.noteDrill(element.getAttribute("drill-ms"))
      this.replaces = element.getAttribute("connection") ?? ""
    }
  }

  // {apply(feed, element) → false to start that feed over, forget(feed), gone(feed), isAwaiting()}
  set view(view) { this.#feeds.view = view }

  get record() { return { ...this.#record } }

  // From where each feed is followed.
  get cursors() { return this.#feeds.cursors }

  // Messages flow, and the server has asked for no pause.
  get mayAsk() { return isConnected(this.#record.status) && this.#record.notBefore <= this.#now }

  get #now() { return Math.round(this.#world.now()) }

  // To show only: how polls are paced now.
  get pace() { return this.#polling.pace }

  start() {
    const watchesNetwork = this.#config.predict.includes("network")
    this.#world.listen((type) => this.dispatch({ type }), () => this.#reborn(), watchesNetwork)
    if (!this.#world.isOnline()) this.dispatch({ type: "offline" })
    this.dispatch({ type: this.#world.isHidden() ? "hidden" : "wake" })
    this.dispatch({ type: "start" })
  }

  retry() { this.dispatch({ type: "retry" }) }

  follow(feed, cursor) {
    this.#feeds.follow(feed, cursor)
    if (this.#record.status !== "disconnected") this.#subscribe({ [feed]: cursor })
  }

  unfollow(feed) {
    if (!this.#feeds.unfollow(feed) || this.#record.status === "disconnected") return
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
    const [after, actions] = step(this.#states, before, event, this.#now, this.#config, this.#world.random)
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
    if (action === "open_websocket") this.#websocket.open(proof(this.#record, this.#now), this.#record.killGap)
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
    const left = this.#record.notBefore - this.#now
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

  // An element from the server, by whatever way and however late. True if it moved a cursor.
  receive(element, transport, isArmoured = false) {
    const feed = element.getAttribute("feed")
    switch (element.localName) {
      case "chat-hello":
        // Somebody else may have signed in from another tab.
        if ((element.getAttribute("person") ?? "") !== (this.#world.page.person ?? "")) return this.dispatch({ type: "signed_out", reason: "signed-out" })
        this.onHello(element)
        return this.#feeds.adoptEpoch(element.getAttribute("epoch"))
      case "chat-feed": return this.#takeFeed(feed, element, transport, isArmoured)
      case "chat-ack": return this.#land(element.getAttribute("client-id"), { ok: true, ack: ackOf(element) })
      case "chat-refused": return this.#land(element.getAttribute("client-id"), refusalOf(element))
      case "chat-reload":
        this.#feeds.adoptEpoch(element.getAttribute("epoch"))
        this.#feeds.adoptHistory(element)
        this.#feeds.forget(feed)
        return this.#feeds.resync(feed)
      case "chat-drill": return this.#cause.noteDrill(element.getAttribute("ms"))
      case "chat-gone":
        this.#feeds.gone(feed)
        return true
      default: console.error(element.localName, element.getAttribute("code"), element.textContent)
    }
  }

  #takeFeed(feed, element, transport, isArmoured) {
    const isWhole = () => isArmoured || [...element.children].every((child) => this.#world.isWhole(child))
    const taken = this.#feeds.take(feed, element, { isWhole })
    if (taken === "altered") {
      this.rewriters.note()
      this.#polling.mend(transport)
    }
    if (taken === "applied" && transport === "polling" && this.#record.ws === "suspect") this.#websocket.expect()
    return taken === "applied"
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
    const isAwaiting = awaiting || this.#flights.size > 0 || this.#feeds.view?.isAwaiting()
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
    this.#world.cancel(this.#timer)
    const due = Math.min(...Object.values(this.#record.timers))
    if (!Number.isFinite(due)) return
    const delay = Math.max(0, due - this.#now)
    const wanted = this.#world.wall() + delay // only this clock goes on while a machine sleeps
    this.#timer = this.#world.later(() => {
      // Far too late: this machine slept or was throttled. Nothing that "timed out" meanwhile says anything.
      const slept = this.#world.wall() - wanted > SLEPT && !isConnected(this.#record.status)
      if (!slept) return this.dispatch({ type: "tick" })
      this.dispatch({ type: "wake" })
      if (this.#world.isHidden()) this.dispatch({ type: "hidden" })
      this.dispatch({ type: "tick" })
    }, delay)
  }

  // What the quality is judged by: does anything get through, and how much later than the round trip says?
  #delivery() {
    const { status } = this.#record
    const { held, every } = this.pace
    const isLive = status !== "reconnecting" && status !== "error"
    return { isLive, isHidden: this.#world.isHidden(), extra: status === "polling" && !held ? every / 2 : 0 }
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
