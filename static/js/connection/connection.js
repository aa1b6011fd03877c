// The connection: holds the record, passes events to the state machine, and performs its actions. It drives both
// transports, which may overlap: cursors make duplicates harmless. All I/O goes through ports (docs/architecture.md
// lists them; browser/world.js has those of a page).

import { Access } from "./access.js"
import { Cause } from "./cause.js"
import { proof } from "./delays.js"
import { Feeds } from "./feeds.js"
import { Measures } from "./measures.js"
import { NetworkMemory, Rewriters } from "./memory.js"
import { PollingTransport } from "./polling.js"
import { ackOf, refusalOf } from "./posts.js"
import { Presence } from "./presence.js"
import { QualityWatch } from "./quality.js"
import { ENDED, isConnected, newRecord, step } from "./states.js"
import { WebSocketTransport } from "./websocket.js"

const WAYS = { buffered: "buffering", cut: "hold-cut", unheld: "hold-cut" } // reasons of pacing that are a proxy's doing
const SLEPT = 3000 // ms; a timer that is later means that the machine slept or was throttled

export class Connection {
  #config; #states; #world; #record; #websocket; #polling
  #timer = null; #inbox = []; #busy = false
  #feeds; #flights = new Map(); #presence; #memory; #quality; #cause; #measures; #way
  reports = null // {add(report)}
  outbox = null // {settled(id, outcome)}: for acknowledgements after the end of a delivery
  onChange = () => {} // (record)
  rewriters = null // the networks that rewrite HTML
  access // see access.js
  replaces = "" // the id of the socket that the next one replaces: the server closes it

  constructor(config, states, world) {
    this.#world = world
    this.#feeds = new Feeds(world, (feed, cursor) => this.#subscribe({ [feed]: cursor }))
    this.#memory = new NetworkMemory(world, config, (data) => this.#report("network", { data }))
    this.rewriters = new Rewriters(world, config)
    this.#measures = new Measures(world, (type, facts) => this.#report(type, facts), () => this.#feeds.cursors)
    const { is_doubtful, killGap } = this.#memory.lesson
    this.#config = { latency_ms: world.latency, is_doubtful, ...config }
    this.#states = states
    this.#record = { ...newRecord(config), killGap }
    this.#presence = new Presence(world, () => this.#hasten())
    this.#cause = new Cause(config, world, (event) => this.dispatch(event))
    const onEnd = (reason) => this.dispatch({ type: "signed_out", reason })
    this.access = new Access(config, world, () => this.#report("renewed", {}), onEnd)
    let maxMessage = config.ws_max_message
    const core = {
      on: (event) => event.type === "unauthorized" ? this.#renew(event) : this.dispatch(this.#cause.excuse(event)),
      access: this.access,
      receive: (element, transport, isArmoured) => this.receive(element, transport, isArmoured),
      resync: () => this.#subscribe(this.#feeds.cursors),
      rewriters: this.rewriters,
      plan: () => ({ epoch: world.page.epoch ?? "", mark: world.page.mark ?? "", feeds: this.#feeds.cursors }),
      activity: (awaiting) => this.#activity(awaiting),
      heartbeat: config.heartbeat_ms,
      triggers: config.predict,
      paced: () => this.#noteWay() ?? this.#publish(),
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

  // {feed: cursor}
  get cursors() { return this.#feeds.cursors }

  // Connected, and no pause is asked for by the server.
  get mayAsk() { return isConnected(this.#record.status) && this.#record.notBefore <= this.#now }

  get #now() { return Math.round(this.#world.now()) }

  // How polls are paced now; for display only.
  get pace() { return this.#polling.pace }

  start() {
    const watchesNetwork = this.#config.predict.includes("network")
    this.#world.listen((type) => this.dispatch({ type }), () => this.#onRestore(), watchesNetwork)
    if (!this.#world.isOnline()) this.dispatch({ type: "offline" })
    this.dispatch({ type: this.#world.isHidden() ? "hidden" : "wake" })
    this.dispatch({ type: "start" })
  }

  // The page ends, rests in the browser's cache, or leaves the connection to another tab.
  leave() {
    if (this.#record.status === "disconnected") return
    this.#measures.close()
    this.#report("end", { reason: null })
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

  // Another tab's connection takes over: this one closes. Deliveries in flight are repeated by POST.
  pause() {
    this.leave()
    this.dispatch({ type: "stop" })
    this.#feeds.clear()
  }

  // → {ok, ack} | {refused: code, words} | {retry: reason, advice_ms}
  deliver(entry) {
    return new Promise((resolve) => {
      const flight = { entry, resolve, byWebSocket: false, at: this.#now, isRepeated: entry.tries > 0 }
      this.#flights.set(entry.id, flight)
      const socket = this.#record.status === "connected" && this.#record.ws === "up" && !entry.create
      flight.byWebSocket = socket && this.#websocket.send(entry)
      if (!flight.byWebSocket) this.#post(flight)
      this.#presence.use()
      this.#hasten()
      this.#polling.hasten()
    })
  }

  // The only function that changes the record. Events raised meanwhile are queued.
  dispatch(event) {
    this.#inbox.push(event)
    if (this.#busy) return
    this.#busy = true
    try {
      while (this.#inbox.length) this.#handle(this.#inbox.shift())
    } finally {
      this.#busy = false
    }
    this.#schedule()
  }

  #handle(event) {
    const { type } = event
    const before = this.#record
    const [after, actions] = step(this.#states, before, event, this.#now, this.#config, this.#world.random)
    this.#record = after
    this.#quality.note(event, before, after)
    this.#measures.note(type, before, after, this.#now)
    if (type === "ws_ready" || type === "online" || type === "retry") this.#cause.forget()
    this.#memory.note(before, after, this.#cause.isSure(after.wsReason))
    for (const action of actions) {
      try { this.#perform(action) } catch (error) { console.error(error) }
    }
    const isOff = after.status === "disconnected"
    if (isOff !== (before.status === "disconnected")) isOff ? this.access.stop() : this.access.start()
    if (type === "wake" || type === "online" || type === "retry") this.access.check()
    if (type === "stop") return this.#publish()
    if (after.status !== before.status) this.#report("state", { from: before.status, to: after.status })
    else if (after.status === "polling" && after.reason !== before.reason) this.#report("cause", {})
    else if (type === "ws_suspect") this.#report("suspect", { reason: event.trigger })
    const { foretold, killGap } = after
    if (foretold !== before.foretold) this.#report("predict", { reason: foretold.trigger, data: foretold })
    if (killGap !== before.killGap) this.#report("idle-kill", { data: { killGap } })
    const shown = (record) => JSON.stringify({ ...record, timers: null })
    if (shown(before) !== shown(after)) this.#publish()
    this.#cause.explain(after)
  }

  // A transport was answered 401, and has stopped: by: "websocket", "polling". Until the renewal has ended, it counts as
  // it was, so that nothing is shown of it.
  async #renew({ by }) {
    const outcome = await this.access.renew()
    if (ENDED.includes(outcome)) this.dispatch({ type: "signed_out", reason: outcome })
    else if (by === "websocket") this.dispatch({ type: "ws_closed", reason: "socket-closed", advice_ms: 0 }) // no blame
    else this.dispatch({ type: "poll_failed", reason: "server-unreachable", quick: outcome === "renewed" })
  }

  #perform(action) {
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

  #repost() {
    for (const flight of [...this.#flights.values()]) {
      if (!flight.byWebSocket) continue
      flight.isRepeated = true
      this.#post(flight)
    }
  }

  // By HTTP, but not during a pause that the server asked for.
  #post(flight) {
    flight.byWebSocket = false
    const { entry } = flight
    const left = this.#record.notBefore - this.#now
    if (left > 0) return this.#settle(entry.id, { retry: "rate-limited", advice_ms: left })
    const sent = this.#polling.send(entry).catch((error) => console.error(error) ?? { retry: "error" })
    sent.then((outcome) => this.#settle(entry.id, outcome))
  }

  #settle(id, outcome) {
    const flight = this.#flights.get(id)
    this.#flights.delete(id)
    this.#websocket.settled(id)
    if (flight && outcome.ok) this.#measures.sent(this.#record.connectionType, this.#now - flight.at, flight.isRepeated)
    if (flight) flight.resolve(outcome)
    else if (!outcome.retry) this.outbox?.settled(id, outcome)
  }

  // Handles an element from the server, by any transport and however late. → true if it moved a cursor
  receive(element, transport, isArmoured = false) {
    const get = (name) => element.getAttribute(name)
    const feed = get("feed")
    switch (element.localName) {
      case "chat-hello":
        // Another person may have signed in from another tab.
        if ((get("person") ?? "") !== (this.#world.page.person ?? "")) return this.dispatch({ type: "signed_out", reason: "signed-out" })
        this.onHello(element)
        this.#world.page.protocol = get("protocol") ?? ""
        return this.#feeds.adoptEpoch(get("epoch"))
      case "chat-answer": // only what an answer grew by
      case "chat-feed": return this.#applyFeed(feed, element, transport, isArmoured)
      case "chat-ack": return this.#settle(get("client-id"), { ok: true, ack: ackOf(element) })
      case "chat-refused": return this.#settle(get("client-id"), refusalOf(element))
      case "chat-reload":
        this.#feeds.adoptEpoch(get("epoch"))
        this.#feeds.adoptHistory(element)
        this.#feeds.forget(feed)
        return this.#feeds.resync(feed)
      case "chat-retry":
        this.#memory.forgive()
        return this.retry()
      case "chat-drill": return this.#cause.noteDrill(get("ms"))
      case "chat-gone":
        this.#feeds.gone(feed)
        return true
      default: console.error(element.localName, get("code"), element.textContent)
    }
  }

  #applyFeed(feed, element, transport, isArmoured) {
    // Of a short name that is nobody's: altered on the way, or two feeds that are followed now begin alike.
    if (element.hasAttribute("at") && !this.#feeds.has(feed)) {
      return this.#world.isWhole(element) ? this.#subscribe(this.#feeds.cursors) : this.#mend(transport)
    }
    const isWhole = () => isArmoured || [element, ...element.children].every((child) => this.#world.isWhole(child))
    const taken = this.#feeds.take(feed, element, { isWhole })
    if (taken === "altered") this.#mend(transport)
    if (taken === "applied") this.#measures.received(element)
    if (taken === "applied" && transport === "polling" && this.#record.ws === "suspect") this.#websocket.expect()
    return taken === "applied"
  }

  #mend(transport) {
    this.rewriters.note()
    this.#noteWay()
    this.#polling.mend(transport)
  }

  #subscribe(feeds) {
    this.#websocket.subscribe(feeds)
    this.#polling.subscribe(feeds)
  }

  // The level of activity, for the pace of echoes and polls (see detector.js).
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

  // User activity: speed up echoes and polls.
  #hasten() {
    if (["active", "hidden"].includes(this.#record.activity)) return
    this.#noteLevel("active")
    this.#websocket.pace()
    this.#polling.hasten()
  }

  // Back from the back/forward cache: the old socket cannot be trusted, even if it seems open.
  #onRestore() {
    this.#websocket.close()
    this.dispatch({ type: "ws_closed", reason: "socket-closed", advice_ms: 0 }) // closed by us: no blame
    this.dispatch({ type: "wake" })
  }

  #schedule() {
    this.#world.cancel(this.#timer)
    const due = Math.min(...Object.values(this.#record.timers))
    if (!Number.isFinite(due)) return
    const delay = Math.max(0, due - this.#now)
    const wanted = this.#world.wall() + delay // only this clock runs while the machine sleeps
    this.#timer = this.#world.later(() => {
      // After sleep, elapsed timeouts prove nothing.
      const slept = this.#world.wall() - wanted > SLEPT && !isConnected(this.#record.status)
      if (!slept) return this.dispatch({ type: "tick" })
      this.dispatch({ type: "wake" })
      if (this.#world.isHidden()) this.dispatch({ type: "hidden" })
      this.dispatch({ type: "tick" })
    }, delay)
  }

  // Input of the quality; extra: the delay of news beyond the round trip, in ms.
  #delivery() {
    const { status } = this.#record
    const { held, every } = this.pace
    const isLive = status !== "reconnecting" && status !== "error"
    return { isLive, isHidden: this.#world.isHidden(), extra: status === "polling" && !held ? every / 2 : 0 }
  }

  #publish() { this.onChange(this.record) }

  // What something on the way does to answers, once it is known.
  #noteWay() {
    const way = this.rewriters.isHere ? "rewriting" : WAYS[this.pace.why]
    if (way && way !== this.#way) this.#report("way", { reason: way })
    this.#way = way
  }

  // Reports to the server's statistics.
  #report(type, { data, ...facts }) {
    const { connectionType, reason, wsReason, rtt, reconnectAttempts } = this.#record
    this.reports?.add({
      type, from: null, to: null, reason: reason ?? wsReason, ...facts, transport: connectionType,
      data: { rtt, attempts: reconnectAttempts, ...data },
    })
  }
}
