// The WebSocket transport: one socket, its proof (hello, feeds, echoes) and its failure detector.
// Same interface as polling.js: open, close, send, subscribe, verify. What happens goes to `on(event)`; elements from the
// server go to `receive(element)`. Any byte is life; echoes are asked for only to have something to wait for.

import { rttEstimate } from "../states.js"

const TICK = 250
const ECHOES_OF_PROOF = 3

export class WebSocketTransport {
  #address; #world; #socket = null; #timer = null
  #estimate = null

  // world: {on, receive, plan() → {epoch, feeds}, activity() → "awaiting" | "visible" | "hidden", maxMessage}
  // address() → the URL to open
  constructor(address, world) {
    this.#address = address
    this.#world = world
  }

  get rto() { return this.#estimate?.rto ?? 1000 }

  // proof: how long (ms) this socket must live, beyond its echoes, before it may carry.
  open(proof = 0) {
    this.close(1000)
    let socket
    try {
      socket = new WebSocket(this.#address())
    } catch (error) {
      console.error(error)
      setTimeout(() => this.#world.on({ type: "ws_closed", reason: "upgrade-refused" }), 50)
      return
    }
    this.#socket = Object.assign(socket, { facts: {
      hello: false, waiting: null, readyAt: 0, proved: false, suspect: false, echoes: 0, proof, n: 0,
      probes: new Map(), sends: new Map(), lastIn: performance.now(), lastEcho: 0, verdictAt: 0, advice: 0,
    } })
    socket.onmessage = (event) => this.#onMessage(socket, event.data)
    socket.onclose = (event) => this.#onClose(socket, event)
    this.#timer = setInterval(() => this.#tick(socket), TICK)
    this.#world.lastTick = performance.now()
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
    this.#socket.facts.sends.set(entry.id, performance.now())
    return true
  }

  settled(id) { this.#socket?.facts.sends.delete(id) }

  // Whole plans are split so that each frame stays below the limit.
  subscribe(feeds) {
    const { epoch } = this.#world.plan()
    let part = {}
    for (const [feed, cursor] of Object.entries(feeds)) {
      const more = { ...part, [feed]: cursor }
      if (Object.keys(part).length && !this.#fits(JSON.stringify({ type: "subscribe", epoch, feeds: more }))) {
        this.#write(JSON.stringify({ type: "subscribe", epoch, feeds: part }))
        part = { [feed]: cursor }
      } else part = more
    }
    if (Object.keys(part).length) this.#write(JSON.stringify({ type: "subscribe", epoch, feeds: part }))
  }

  unsubscribe(feed) { this.#write(JSON.stringify({ type: "unsubscribe", feeds: [feed] })) }

  // After sleep or on a hint: forget what was outstanding, ask once more, judge in `within` ms.
  verify(within = 2000) {
    const facts = this.#socket?.facts
    if (!facts?.readyAt) return
    facts.probes.clear()
    for (const id of facts.sends.keys()) facts.sends.set(id, performance.now())
    facts.verdictAt = performance.now() + within
    this.#echo(facts)
  }

  // A poll brought what this silent socket should have: it has `within` ms left to say anything.
  expect(within) {
    const facts = this.#socket?.facts
    if (!facts || facts.verdictAt) return
    facts.verdictAt = performance.now() + within
    this.#echo(facts)
  }

  #fits(text) { return new TextEncoder().encode(text).length <= this.#world.maxMessage() }

  #write(text) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false
    try { this.#socket.send(text) } catch (error) { console.error(error); return false }
    return true
  }

  #echo(facts) {
    facts.n += 1
    facts.lastEcho = performance.now()
    if (this.#write(JSON.stringify({ type: "echo", n: facts.n }))) facts.probes.set(facts.n, facts.lastEcho)
  }

  #onMessage(socket, data) {
    if (socket !== this.#socket) return
    const facts = socket.facts
    facts.lastIn = performance.now()
    facts.verdictAt = 0
    const holder = document.createElement("template")
    holder.innerHTML = data
    const element = holder.content.firstElementChild
    if (!element) return
    const kind = element.localName
    if (kind === "chat-hello") this.#onHello(facts, element)
    else if (kind === "chat-echo") this.#onEcho(facts, Number(element.getAttribute("n")))
    else this.#world.receive(element, "websocket")
    if (kind === "chat-feed" || kind === "chat-gone") facts.waiting?.delete(element.getAttribute("feed"))
    if (facts.suspect) this.#recover(facts)
    this.#advance(facts)
  }

  #onHello(facts, element) {
    facts.hello = true
    this.#world.receive(element, "websocket")
    const { feeds } = this.#world.plan()
    facts.waiting = new Set(Object.keys(feeds))
    this.subscribe(feeds)
    this.#echo(facts)
  }

  #onEcho(facts, n) {
    const sentAt = facts.probes.get(n)
    facts.echoes += 1
    for (const older of [...facts.probes.keys()]) if (older <= n) facts.probes.delete(older)
    // Karn: what was asked before or during a suspicion says nothing about the round trip now.
    if (sentAt === undefined || facts.suspect) return
    this.#estimate = rttEstimate(this.#estimate, performance.now() - sentAt)
    this.#world.on({ type: "measured", rtt: Math.round(this.#estimate.srtt) })
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
    } else if (facts.probes.size === 0 && facts.echoes < ECHOES_OF_PROOF) this.#echo(facts)
  }

  #recover(facts) {
    facts.suspect = false
    facts.probes.clear()
    this.#world.on({ type: "ws_recovered" })
  }

  #tick(socket) {
    if (socket !== this.#socket) return
    const facts = socket.facts
    const now = performance.now()
    const late = now - this.#world.lastTick > TICK + 3000
    this.#world.lastTick = now
    if (!facts.hello) return
    if (late) return this.verify()
    if (!facts.proved && facts.readyAt) return this.#tickOfProof(facts, now)
    if (facts.verdictAt && now > facts.verdictAt) return this.#die("socket-silent")
    const activity = this.#world.activity(facts.sends.size > 0)
    const interval = { awaiting: 2000, visible: 5000, hidden: this.#world.heartbeat }[activity]
    if (now - Math.max(facts.lastEcho, activity === "awaiting" ? 0 : facts.lastIn) >= interval) this.#echo(facts)
    if (activity !== "hidden") this.#judge(facts, now)
  }

  #tickOfProof(facts, now) {
    if (now - facts.lastEcho > 500 && facts.probes.size === 0) this.#echo(facts)
    this.#judge(facts, now)
  }

  // Suspect at one time-out without a byte after something was asked or sent; dead at three with two probes lost.
  #judge(facts, now) {
    const asked = [...facts.probes.values()].filter((at) => at > facts.lastIn)
    const oldest = Math.min(...asked, ...facts.sends.values())
    const age = now - oldest
    if (!(age > this.rto)) return
    if (!facts.suspect) {
      facts.suspect = true
      facts.sends.clear() // the connection repeats them by POST
      this.#world.on({ type: "ws_suspect" })
      if (this.#socket?.facts === facts) this.#echo(facts)
      return
    }
    if (asked.length >= 2 && now - Math.min(...asked) > 3 * this.rto) this.#die("socket-silent")
  }

  #die(reason) {
    const socket = this.#socket
    this.#forget()
    try { socket.close(4000) } catch (error) { console.error(error) }
    this.#world.on({ type: "ws_closed", reason })
  }

  #onClose(socket, event) {
    if (socket !== this.#socket) return
    const facts = socket.facts
    this.#forget()
    if (event.code === 4401) return this.#world.on({ type: "signed_out", reason: "signed-out" })
    const seconds = Number(/retry=([\d.]+)/.exec(event.reason ?? "")?.[1])
    const closed = { type: "ws_closed", reason: facts.hello ? "socket-closed" : "upgrade-refused" }
    if (event.code === 1012) closed.reason = "server-restart"
    if (seconds >= 0) closed.advice_ms = Math.round(seconds * 1000)
    this.#world.on(closed)
  }

  #forget() {
    clearInterval(this.#timer)
    if (this.#socket) this.#socket.onmessage = this.#socket.onclose = null
    this.#socket = null
  }
}
