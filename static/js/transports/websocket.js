// The WebSocket transport: one socket, its proof (hello, feeds, echoes), and what its failure detector says.
// Same interface as polling.js: open, close, send, subscribe, verify. What happens goes to `on(event)`; elements from the
// server go to `receive(element)`.

import { Detector } from "./detector.js"
import { within } from "./posts.js"

const SLEPT = 3000 // a timer that comes so late says that this machine slept, not that the network failed
const ECHOES_OF_PROOF = 3

export class WebSocketTransport {
  #address; #world; #socket = null; #timer = null
  #detector = null // of the newest socket

  // world: {on, receive, plan() → {epoch, feeds}, activity(awaiting) (see detector.js), maxMessage(), heartbeat, triggers}
  // address() → the URL to open
  constructor(address, world) {
    this.#address = address
    this.#world = world
  }

  // proof: how long (ms) this socket must live, beyond its echoes, before it may carry; killGap: see detector.js.
  open(proof = 0, killGap = 0) {
    this.close(1000)
    let socket
    try {
      socket = new WebSocket(this.#address())
    } catch (error) {
      console.error(error)
      setTimeout(() => this.#world.on({ type: "ws_closed", reason: "upgrade-failed" }), 50)
      return
    }
    const { heartbeat, triggers } = this.#world
    const detector = new Detector(performance.now(), { heartbeat, triggers, before: this.#detector, killGap })
    this.#detector = detector
    const facts = { detector, hello: false, waiting: null, readyAt: 0, proved: false, echoes: 0, proof }
    this.#socket = Object.assign(socket, { facts })
    socket.onmessage = (event) => this.#onMessage(socket, event.data)
    socket.onclose = (event) => this.#onClose(socket, event)
  }

  close(code = 1000) {
    const socket = this.#socket
    if (!socket) return
    this.#forget()
    try { socket.close(code) } catch (error) { console.error(error) }
  }

  // True if the entry went out; its ack or refusal comes as a frame.
  send(entry) {
    const text = JSON.stringify({
      type: "send", conversation: entry.conversation, client_id: entry.id, body: entry.body,
    })
    if (!this.#fits(text) || !this.#write(text)) return false
    const { detector } = this.#socket.facts
    detector.sent(entry.id, performance.now())
    detector.buffer(this.#socket.bufferedAmount, performance.now())
    this.#schedule()
    return true
  }

  settled(id) { this.#socket?.facts.detector.settled(id) }

  // Whole plans are split so that each frame stays below the limit.
  subscribe(feeds) {
    const { epoch, mark } = this.#world.plan()
    const frame = (part) => JSON.stringify({ type: "subscribe", epoch, ...(mark && { mark }), feeds: part })
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

  // After sleep or on a hint: forget what was outstanding, ask once more, judge in 2 s.
  verify() {
    const facts = this.#socket?.facts
    if (!facts?.readyAt) return
    facts.detector.verify(performance.now())
    this.#echo(facts)
    this.#schedule()
  }

  // A poll brought what this silent socket should have.
  expect() {
    this.#socket?.facts.detector.expect(performance.now())
    this.#schedule()
  }

  // What the person does has changed.
  pace() { this.#schedule() }

  #fits(text) { return new TextEncoder().encode(text).length <= this.#world.maxMessage() }

  #write(text) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false
    try { this.#socket.send(text) } catch (error) { console.error(error); return false }
    return true
  }

  #echo(facts) { this.#write(JSON.stringify({ type: "echo", n: facts.detector.ask(performance.now()) })) }

  #onMessage(socket, data) {
    if (socket !== this.#socket) return
    const { facts } = socket
    const recovered = facts.detector.heard(performance.now())
    const holder = document.createElement("template")
    holder.innerHTML = data
    const element = holder.content.firstElementChild
    if (!element) return
    const kind = element.localName
    if (kind === "chat-hello") this.#onHello(facts, element)
    else if (kind === "chat-echo") this.#onEcho(facts, Number(element.getAttribute("n")), !recovered)
    else this.#world.receive(element, "websocket")
    if (kind === "chat-feed" || kind === "chat-gone") facts.waiting?.delete(element.getAttribute("feed"))
    if (recovered) this.#world.on({ type: "ws_recovered" })
    this.#advance(facts)
  }

  #onHello(facts, element) {
    facts.hello = true
    this.#world.receive(element, "websocket")
    const { feeds } = this.#world.plan()
    facts.waiting = new Set(Object.keys(feeds))
    this.subscribe(feeds)
    this.#echo(facts)
    this.#schedule()
  }

  #onEcho(facts, n, isClean) {
    facts.echoes += 1
    const smoothed = facts.detector.echoed(n, performance.now(), isClean)
    if (smoothed === null) return
    const { rttvar } = facts.detector.estimate
    this.#world.on({ type: "measured", rtt: Math.round(smoothed), jitter: Math.round(rttvar) })
  }

  // From hello to ready (feeds resumed, one echo) to proved (three echoes, and old enough).
  #advance(facts) {
    if (!facts.hello || facts.proved || facts.waiting.size > 0 || facts.echoes === 0) return
    if (!facts.readyAt) {
      facts.readyAt = performance.now()
      this.#world.on({ type: "ws_ready" })
    }
    if (this.#socket?.facts !== facts) return
    if (facts.echoes >= ECHOES_OF_PROOF && performance.now() - facts.readyAt >= facts.proof) {
      facts.proved = true
      this.#world.on({ type: "ws_proved" })
    } else if (facts.detector.probes.size === 0 && facts.echoes < ECHOES_OF_PROOF) this.#echo(facts)
  }

  #activity(facts) {
    if (facts.readyAt && !facts.proved) return "proving"
    return this.#world.activity(facts.detector.sends.size > 0)
  }

  #schedule() {
    clearTimeout(this.#timer)
    const socket = this.#socket
    if (!socket?.facts.hello) return
    const delay = Math.max(0, Math.ceil(socket.facts.detector.due(this.#activity(socket.facts)) - performance.now()))
    const wanted = Date.now() + delay
    this.#timer = setTimeout(() => {
      if (socket !== this.#socket) return
      if (Date.now() - wanted > SLEPT) return this.verify()
      this.#tick(socket)
      this.#schedule()
    }, delay)
  }

  #tick(socket) {
    const { facts } = socket
    facts.detector.buffer(socket.bufferedAmount, performance.now())
    for (const what of facts.detector.tick(performance.now(), this.#activity(facts))) {
      if (socket !== this.#socket) return
      if (what === "dead") this.#die()
      else if (what === "suspect") this.#world.on({ type: "ws_suspect", trigger: facts.detector.suspicion })
      else this.#echo(facts)
    }
  }

  #die() {
    const socket = this.#socket
    this.#forget()
    try { socket.close(4000) } catch (error) { console.error(error) }
    this.#world.on({ type: "ws_closed", reason: "socket-silent" })
  }

  #onClose(socket, event) {
    if (socket !== this.#socket) return
    const facts = socket.facts
    this.#forget()
    if (event.code === 4401) return this.#world.on({ type: "signed_out", reason: "signed-out" })
    const said = event.reason ?? ""
    const seconds = Number(/retry=([\d.]+)/.exec(said)?.[1])
    const reason = facts.hello ? "socket-closed" : "upgrade-failed"
    const closed = { type: "ws_closed", reason, silent_ms: silence(facts) }
    if (event.code === 1012) closed.reason = "server-restart"
    // The server's own fault says nothing about the network: no blame.
    if (event.code === 1011) Object.assign(closed, { reason: said.startsWith("storage") ? "server-storage" : "server-error", advice_ms: 0 })
    if (seconds >= 0) closed.advice_ms = within(Math.round(seconds * 1000))
    this.#world.on(closed)
  }

  #forget() {
    clearTimeout(this.#timer)
    if (this.#socket) this.#socket.onmessage = this.#socket.onclose = null
    this.#socket = null
  }
}

const silence = (facts) => Math.round(performance.now() - facts.detector.lastIn)
