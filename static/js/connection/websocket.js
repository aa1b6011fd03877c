// The WebSocket transport: one socket, its proof (hello, feeds, echoes) and its failure detector. Same interface as
// polling.js: open, close, send, subscribe, verify. Events go to `on(event)`, the server's elements to
// `receive(element)`.

import { Detector } from "./detector.js"
import { named } from "./feeds.js"
import { within } from "./posts.js"

const SLEPT = 3000 // ms; a timer that is later means that the machine slept, not that the network failed
const ECHOES = 3
const CLOSE = Object.freeze({ NORMAL: 1000, SERVER_ERROR: 1011, RESTART: 1012, DEAD: 4000, SIGNED_OUT: 4401 })

export class WebSocketTransport {
  #world; #core; #socket = null; #facts = null; #timer = null
  #detector = null // of the newest socket

  // core: {on, receive, plan() → {epoch, mark, feeds}, activity(awaiting) (see detector.js), maxMessage(), replaces(),
  // heartbeat, triggers}
  constructor(world, core) {
    this.#world = world
    this.#core = core
  }

  // proof: how long (ms) this socket must live after its echoes; killGap: see detector.js.
  open(proof = 0, killGap = 0) {
    this.close()
    const { heartbeat, triggers } = this.#core
    const detector = new Detector(this.#now, { heartbeat, triggers, before: this.#detector, killGap })
    const facts = { detector, hello: false, waiting: null, readyAt: 0, proved: false, echoes: 0, proof }
    try {
      this.#socket = this.#world.openSocket(this.#core.replaces(), {
        onText: (text) => this.#onText(facts, text), onClose: (code, reason) => this.#onClose(facts, code, reason),
      })
    } catch (error) {
      console.error(error)
      this.#world.later(() => this.#core.on({ type: "ws_closed", reason: "upgrade-failed" }), 50)
      return
    }
    this.#detector = detector
    this.#facts = facts
  }

  close(code = CLOSE.NORMAL) {
    const socket = this.#socket
    if (!socket) return
    this.#forget()
    socket.close(code)
  }

  // → true if the entry was sent; its acknowledgement or refusal arrives as a frame
  send(entry) {
    const text = JSON.stringify({
      type: "send", conversation: entry.conversation, client_id: entry.id, body: entry.body,
    })
    if (!this.#fits(text) || !this.#write(text)) return false
    const { detector } = this.#facts
    detector.sent(entry.id, this.#now)
    detector.buffer(this.#socket.buffered, this.#now)
    this.#schedule()
    return true
  }

  settled(id) { this.#facts?.detector.settled(id) }

  // Split into frames below the size limit.
  subscribe(feeds) {
    const { epoch, mark } = this.#core.plan()
    const frame = (part) => JSON.stringify({ type: "subscribe", epoch, ...(mark && { mark }), short: true, feeds: part })
    let part = {}
    for (const [feed, cursor] of Object.entries(feeds)) {
      const more = { ...part, [feed]: cursor }
      if (Object.keys(part).length && !this.#fits(frame(more))) {
        this.#write(frame(part))
        part = { [feed]: cursor }
      } else part = more
    }
    if (Object.keys(part).length) this.#write(frame(part))
  }

  unsubscribe(feed) { this.#write(JSON.stringify({ type: "unsubscribe", feeds: [feed] })) }

  // After a hint. A socket that is not ready is the attempt's to judge.
  verify() { if (this.#facts?.readyAt) this.#verify(this.#facts) }

  // A poll brought news that this silent socket should have.
  expect() {
    this.#facts?.detector.expect(this.#now)
    this.#schedule()
  }

  // The level of activity has changed.
  pace() { this.#schedule() }

  get #now() { return this.#world.now() }

  #fits(text) { return sizeOf(text) <= this.#core.maxMessage() }

  #write(text) { return this.#socket?.send(text) ?? false }

  // Forgets outstanding echoes, sends a new one, verdict in 2 s. After a sleep also before the socket is ready: this timer
  // would be the detector's last.
  #verify(facts) {
    facts.detector.verify(this.#now)
    this.#echo(facts)
    this.#schedule()
  }

  #echo(facts) { this.#write(JSON.stringify({ type: "echo", n: facts.detector.ask(this.#now) })) }

  #onText(facts, text) {
    if (facts !== this.#facts) return
    const [element] = this.#world.parse(named(text, Object.keys(this.#core.plan().feeds)))
    const kind = element?.localName
    const recovered = facts.detector.heard(this.#now, kind === "chat-echo")
    if (!element) return
    if (kind === "chat-hello") this.#onHello(facts, element)
    else if (kind === "chat-echo") this.#onEcho(facts, Number(element.getAttribute("n")), !recovered)
    else this.#core.receive(element, "websocket")
    if (kind === "chat-feed" || kind === "chat-gone") facts.waiting?.delete(element.getAttribute("feed"))
    if (recovered) this.#core.on({ type: "ws_recovered" })
    this.#advance(facts)
  }

  #onHello(facts, element) {
    facts.hello = true
    this.#core.receive(element, "websocket")
    const { feeds } = this.#core.plan()
    facts.waiting = new Set(Object.keys(feeds))
    this.subscribe(feeds)
    this.#echo(facts)
    this.#schedule()
  }

  #onEcho(facts, n, isClean) {
    facts.echoes += 1
    const smoothed = facts.detector.echoed(n, this.#now, isClean)
    if (smoothed === null) return
    const { rttvar } = facts.detector.estimate
    this.#core.on({ type: "measured", rtt: Math.round(smoothed), jitter: Math.round(rttvar) })
  }

  // From hello to ready (feeds resumed, one echo) to proved (three echoes, and old enough).
  #advance(facts) {
    if (!facts.hello || facts.proved || facts.waiting.size > 0 || facts.echoes === 0) return
    if (!facts.readyAt) {
      facts.readyAt = this.#now
      this.#core.on({ type: "ws_ready" })
    }
    if (this.#facts !== facts) return
    if (facts.echoes >= ECHOES && this.#now - facts.readyAt >= facts.proof) {
      facts.proved = true
      this.#core.on({ type: "ws_proved" })
    } else if (facts.detector.probes.size === 0 && facts.echoes < ECHOES) this.#echo(facts)
  }

  #activity(facts) {
    if (facts.readyAt && !facts.proved) return "proving"
    return this.#core.activity(facts.detector.sends.size > 0)
  }

  #schedule() {
    this.#world.cancel(this.#timer)
    const facts = this.#facts
    if (!facts?.hello) return
    const delay = Math.max(0, Math.ceil(facts.detector.due(this.#activity(facts)) - this.#now))
    const wanted = this.#world.wall() + delay
    this.#timer = this.#world.later(() => {
      if (facts !== this.#facts) return
      if (this.#world.wall() - wanted > SLEPT) return this.#verify(facts)
      this.#tick(facts)
      this.#schedule()
    }, delay)
  }

  #tick(facts) {
    facts.detector.buffer(this.#socket.buffered, this.#now)
    for (const what of facts.detector.tick(this.#now, this.#activity(facts))) {
      if (facts !== this.#facts) return
      if (what === "dead") this.#die()
      else if (what === "suspect") this.#core.on({ type: "ws_suspect", trigger: facts.detector.suspicion })
      else this.#echo(facts)
    }
  }

  #die() {
    this.close(CLOSE.DEAD)
    this.#core.on({ type: "ws_closed", reason: "socket-silent" })
  }

  #onClose(facts, code, said = "") {
    if (facts !== this.#facts) return
    this.#forget()
    if (code === CLOSE.SIGNED_OUT) return this.#core.on({ type: "unauthorized", by: "websocket" })
    const seconds = Number(/retry=([\d.]+)/.exec(said)?.[1])
    const reason = facts.hello ? "socket-closed" : "upgrade-failed"
    const closed = { type: "ws_closed", reason, silent_ms: Math.round(this.#now - facts.detector.lastIn) }
    if (code === CLOSE.RESTART) closed.reason = "server-restart"
    // An error in the server says nothing about the network: no blame.
    if (code === CLOSE.SERVER_ERROR) Object.assign(closed, { reason: said.startsWith("storage") ? "server-storage" : "server-error", advice_ms: 0 })
    if (seconds >= 0) closed.advice_ms = within(Math.round(seconds * 1000))
    this.#core.on(closed)
  }

  #forget() {
    this.#world.cancel(this.#timer)
    this.#socket = this.#facts = null
  }
}

// The length of a text in UTF-8.
function sizeOf(text) {
  let size = 0
  for (const letter of text) size += letter < "\u0080" ? 1 : letter < "\u0800" ? 2 : letter.length + 2
  return size
}
