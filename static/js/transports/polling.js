// The polling transport: htmx sends the hidden form #poll and swaps the answer into #inbox; sends go by POST.
// Same interface as websocket.js: open, close, send, subscribe, verify. An answer without the product's mark is never
// swapped in: it is a named failure. Beside a held poll, a small heartbeat notices that its socket hangs.

import { rttEstimate } from "../delays.js"
import { steadyClock } from "../surroundings.js"
import { opened } from "./integrity.js"
import { Pacing } from "./pacing.js"
import { Posts, advice, codeOf, fetchWithin } from "./posts.js"

const MARK = "<chat-answer"
const END = "</chat-answer>"
const ARMOUR = "<chat-armour"
const GAP = 20
const EARLY = 1000
const BEATS = { awaiting: 2000, active: 5000, visible: 5000, idle: 15000 } // not while hidden or offline
const BEAT_LATER = 5000
const MEND_AGAIN = 3000

// The answer without white space around it; false where it is not ours, or not all of it.
function whole(text) {
  const answer = text.trim()
  return answer.startsWith(MARK) && answer.endsWith(END) && answer
}

// Whether an answer speaks of nothing but what was asked for: else a name in it was altered on the way.
function isAbout(holder, query) {
  const asked = [null, ...query.getAll("c").map((cursor) => cursor.split(":")[0])] // null: it is about no feed
  return elementsOf(holder).every((element) => asked.includes(element.getAttribute("feed")))
}

const elementsOf = (holder) => [...(holder.querySelector("chat-answer")?.children ?? [])]

const parsed = (html) => Object.assign(document.createElement("template"), { innerHTML: html }).content

export class PollingTransport {
  #config; #world; #form; #inbox
  #running = false; #request = null; #timer = null; #heartbeat = null; #beating = false
  #estimate = null; #pacing; #posts; #due = null

  #mending = false; #mendsAgain = false
  // world: {on, receive, plan() → {epoch, feeds}, activity() → "awaiting" | "visible" | "hidden", rewriters}
  constructor(config, world) {
    this.#config = config
    this.#world = world
    this.#pacing = new Pacing(config.poll_ms, config.poll_hold_ms)
    this.#posts = new Posts(config, world.on)
    this.#form = document.getElementById("poll")
    this.#inbox = document.getElementById("inbox")
    const listen = (name, take) => this.#form?.addEventListener(name, (event) => {
      if (name === "htmx:config:request" ? this.#request : event.detail.ctx === this.#request?.ctx) take(event)
    })
    listen("htmx:config:request", ({ detail }) => {
      this.#request.ctx = detail.ctx
      detail.ctx.request.timeout = this.#request.wait * 1000 + 6000
      detail.ctx.request.redirect = "manual" // ours are none; a sign-in page elsewhere must be told from a dead server
    })
    listen("htmx:after:request", (event) => this.#gate(event))
    listen("htmx:after:swap", () => this.#takeIn())
    listen("htmx:finally:request", () => this.#end(this.#request))
  }

  get rto() { return this.#estimate?.rto ?? 1500 }

  // What people are shown: are polls held open (ms), or how far apart are they (ms), and why?
  get pace() {
    const held = this.#pacing.hold(steadyClock())
    return { held, every: this.#pacing.interval(this.#world.activity()), why: this.#pacing.why }
  }

  send(entry) { return this.#posts.send(entry) }

  open() {
    if (this.#running) return
    this.#running = true
    this.#next(0, 0)
  }

  close() {
    this.#running = false
    this.#due = null
    clearTimeout(this.#timer)
    this.#abort()
  }

  // Drop what hangs or waits, and ask at once.
  verify() {
    this.#running = true
    clearTimeout(this.#timer)
    if (this.#request) {
      this.#request.again = true
      this.#abort()
    } else this.#next(0, 0)
  }

  subscribe() { if (this.#running) this.verify() }

  // Something that arrived is not what was sent: ask for it again, in an armour. What came by a socket is asked for
  // beside it; a poll simply asks on.
  mend(transport) {
    if (transport !== "polling") return this.#mend()
    if (this.#request) this.#request.rewritten = true
  }

  async #mend() {
    if (this.#mending) return this.#mendsAgain = true // it came after what is being asked for
    this.#mending = true
    this.#mendsAgain = false
    const url = `${this.#config.changes_url}?${new URLSearchParams(this.#inputs(0))}`
    const ended = await fetchWithin(10000, url).then(({ response, text }) => {
      const answer = response.status === 200 ? whole(opened(text)) : null
      if (answer) this.#receive(parsed(answer), true)
      return answer || response.status === 204
    }).catch(() => false)
    this.#mending = false
    if (ended && this.#mendsAgain) this.#mend()
    if (!ended) setTimeout(() => this.#world.resync(), MEND_AGAIN)
  }

  // The person did something: a plain poll that is far off comes sooner.
  hasten() {
    if (this.#due === null || !this.#running || this.#request) return
    const left = Math.min(this.#due.at - steadyClock(), this.#pacing.interval(this.#world.activity()))
    this.#next(Math.max(0, left), this.#due.wait)
  }

  #next(delay, wait) {
    clearTimeout(this.#timer)
    this.#due = { at: steadyClock() + delay, wait }
    this.#timer = setTimeout(() => this.#ask(wait), delay)
  }

  #ask(wait) {
    this.#due = null
    if (!this.#running || this.#request) return
    const htmx = window.htmx
    if (!this.#form || !htmx) return this.#fail({ reason: "server-unreachable" })
    const inputs = this.#inputs(wait).map(([name, value]) => {
      return Object.assign(document.createElement("input"), { type: "hidden", name, value })
    })
    this.#form.replaceChildren(...inputs)
    this.#request = { wait, armour: this.#world.rewriters.isHere, startedAt: performance.now(), query: new URLSearchParams(new FormData(this.#form)) }
    htmx.process(this.#form)
    htmx.trigger(this.#form, "chat:poll")
    if (wait > 0) this.#scheduleHeartbeat(this.#request)
  }

  #inputs(wait) {
    const { epoch, mark, feeds } = this.#world.plan()
    const { person } = document.body.dataset // another person's session must not answer this page
    const armour = this.#world.rewriters.isHere ? [["armour", 1]] : []
    const cursors = Object.entries(feeds).map(([feed, cursor]) => ["c", `${feed}:${cursor}`])
    const history = mark ? [["mark", mark]] : []
    return [["epoch", epoch], ...history, ["person", person], ["wait", wait], ...armour, ...cursors]
  }

  #abort() {
    clearTimeout(this.#heartbeat)
    if (this.#request && !this.#request.ended) window.htmx?.trigger(this.#form, "htmx:abort")
  }

  // Only a 200 that carries the mark, whole, goes on to be swapped; whatever else came gets a name.
  #gate(event) {
    const { ctx } = event.detail
    const { status, headers, raw } = ctx.response
    const text = status === 200 ? opened(ctx.text) : ctx.text
    const begun = status === 200 && [MARK, ARMOUR].some((mark) => text.includes(mark))
    const ours = status === 200 && whole(text)
    ctx.text = text
    if (ours && this.#running) return
    event.preventDefault()
    ctx.hx = {} // a foreign answer's HX-* headers are not obeyed either
    if (ours || status === 204) this.#request.outcome = { ok: true, news: false }
    else if (status === 401) this.#request.outcome = { signedOut: true }
    else if (raw.type === "opaqueredirect") this.#request.outcome = { reason: "redirected" }
    else if (status === 429) this.#request.outcome = { reason: reasonOf(text, "rate-limited"), advice_ms: advice(headers, text) }
    else if (begun && text.includes(END) && !this.#request.armour) this.#noteRewriter() // with something around it
    else if (begun) this.#request.outcome = { reason: "server-unreachable" } // cut off on the way
    else if (status >= 500) this.#request.outcome = { reason: reasonOf(text, "server-unreachable"), advice_ms: advice(headers, text) }
    else this.#request.outcome = { reason: "foreign-page" }
  }

  #noteRewriter() {
    this.#world.rewriters.note()
    this.#request.outcome = { ok: true, news: true }
    this.#request.rewritten = true
  }

  #takeIn() {
    const request = this.#request
    if (!request.armour && !isAbout(this.#inbox, request.query)) this.#noteRewriter()
    else request.outcome = { ok: true, news: true, ...this.#receive(this.#inbox, request.armour) }
    this.#inbox.replaceChildren()
  }

  #receive(holder, isArmoured) {
    const taken = { advanced: false, more: false }
    for (const element of elementsOf(holder)) {
      if (element.hasAttribute("more")) taken.more = true
      try {
        if (this.#world.receive(element, "polling", isArmoured)) taken.advanced = true
      } catch (error) { console.error(error) }
    }
    return taken
  }

  // htmx is still busy with the form while it reports the end: conclude in a task of its own.
  #end(request) {
    request.ended = true
    clearTimeout(this.#heartbeat)
    setTimeout(() => {
      this.#request = null
      if (!this.#running) return
      if (request.again) return this.#next(0, 0)
      this.#conclude(request, request.outcome ?? { reason: "server-unreachable" })
    })
  }

  #conclude(request, outcome) {
    const took = performance.now() - request.startedAt
    if (outcome.signedOut) return this.#stopFor({ type: "signed_out", reason: "signed-out" })
    if (!outcome.ok) {
      const cut = request.wait > 0 && took > EARLY && !outcome.advice_ms
      if (cut && !outcome.quick) this.#pacing.cut(steadyClock(), took)
      return this.#fail({ ...outcome, quick: (cut || outcome.quick) && !outcome.advice_ms })
    }
    const early = request.wait > 0 && !outcome.news && took < EARLY
    if (request.wait === 0) this.#measure(took)
    else if (early) this.#pacing.endedEarly(steadyClock())
    else this.#pacing.held(took, outcome.news)
    this.#world.on({ type: "poll_answered" })
    if (!this.#running) return
    if (request.rewritten) return this.#next(0, 0)
    const unmoved = outcome.news && !outcome.advanced // something is wrong: never ask in a tight loop
    const gap = this.#pacing.gap(steadyClock(), this.#world.activity(), outcome.news, !unmoved && !early)
    const wait = outcome.more ? 0 : Math.round(this.#pacing.hold(steadyClock()) / 1000)
    this.#next(outcome.more && !unmoved ? GAP : gap, wait)
    this.#world.paced()
  }

  #fail(outcome) { this.#stopFor({ type: "poll_failed", ...outcome }) }

  // The machine decides when to ask again.
  #stopFor(event) {
    this.#running = false
    this.#world.on(event)
  }

  #measure(sample) {
    this.#estimate = rttEstimate(this.#estimate, sample)
    const { srtt, rttvar } = this.#estimate
    this.#world.on({ type: "measured", rtt: Math.round(srtt), jitter: Math.round(rttvar) })
  }

  #scheduleHeartbeat(request) {
    const activity = this.#world.activity()
    clearTimeout(this.#heartbeat)
    this.#heartbeat = setTimeout(() => this.#beat(request), BEATS[activity] ?? BEAT_LATER)
  }

  async #beat(request) {
    if (request.ended || request !== this.#request) return
    if (!(this.#world.activity() in BEATS) || this.#beating) return this.#scheduleHeartbeat(request)
    const query = new URLSearchParams(request.query)
    query.set("wait", "0")
    const startedAt = performance.now()
    this.#beating = true
    try {
      const { response, text } = await fetchWithin(this.rto, `${this.#config.changes_url}?${query}`)
      const pause = [429, 503].includes(response.status) ? advice(response.headers, text) : 0
      if ((response.status === 401 || pause) && request === this.#request) {
        request.outcome = pause ? { reason: "rate-limited", advice_ms: pause } : { signedOut: true }
        this.#abort()
      }
      if (response.ok) this.#measure(performance.now() - startedAt)
      if (response.status === 200) setTimeout(() => this.#suspectBuffering(request), this.rto)
    } catch {
      // A timer that came far too late says that this machine slept, not that the network failed.
      const slept = performance.now() - startedAt > this.rto + 3000
      if (!slept && !request.ended && request === this.#request) this.#suspect(request)
    } finally {
      this.#beating = false
    }
    if (!request.ended && request === this.#request) this.#scheduleHeartbeat(request)
  }

  #suspect(request) {
    request.outcome = { reason: "mute", quick: true }
    this.#abort()
  }

  // A plain request saw news that the held one still has not brought: something on the way keeps held answers back.
  #suspectBuffering(request) {
    if (request.ended || request !== this.#request) return
    this.#pacing.buffered(steadyClock())
    this.verify()
  }
}

// What our own refusals say of themselves; everything else is as it looks.
const REASONS = { drill: "drill", storage: "server-storage" }
const reasonOf = (text, otherwise) => REASONS[codeOf(text)] ?? otherwise
