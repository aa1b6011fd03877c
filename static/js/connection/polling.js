// The polling transport: long polls if the network allows them, else plain ones; messages go by POST. Same interface as
// websocket.js: open, close, send, subscribe, verify. An answer without our mark is never applied: it is a failure with
// a reason. While a poll is held, small heartbeat requests detect a hung socket.

import { rttEstimate } from "./delays.js"
import { named, within } from "./feeds.js"
import { Pacing } from "./pacing.js"
import { Posts, advice, codeOf } from "./posts.js"

const MARK = "<chat-answer"
const END = "</chat-answer>"
const ARMOUR = "<chat-armour"
const GAP = 20
const EARLY = 1000
const BEATS = { awaiting: 2000, active: 5000, visible: 5000, idle: 15000 } // ms; none while hidden or offline
const BEAT_LATER = 5000
const ALLOWANCE = 6000 // ms beyond the requested hold
const MEND_AGAIN = 3000

// → the answer without surrounding white space; false if it is foreign or truncated
function whole(text, fields) {
  const answer = named(text.trim(), feedsIn(fields))
  return answer.startsWith(MARK) && answer.endsWith(END) && answer
}

// True if an answer has only requested feeds; else a name in it was altered on the way.
function isAbout(elements, fields) {
  return elements.every((element) => [null, ...feedsIn(fields)].includes(element.getAttribute("feed"))) // null: of no feed
}

const feedsIn = (fields) => fields.filter(([name]) => name === "c").map(([, cursor]) => cursor.split(":")[0])

export class PollingTransport {
  #config; #world; #core
  #running = false; #request = null; #timer = null; #heartbeat = null; #beating = false
  #estimate = null; #pacing; #posts; #due = null

  #mending = false; #mendsAgain = false
  // core: {on, access, receive, resync, plan() → {epoch, mark, feeds}, activity() → see detector.js, rewriters, paced}
  constructor(config, world, core) {
    this.#config = config
    this.#world = world
    this.#core = core
    this.#pacing = new Pacing(config.poll_ms, config.poll_hold_ms)
    this.#posts = new Posts(config, world, core.access, core.on)
  }

  get #now() { return this.#world.now() }

  get rto() { return this.#estimate?.rto ?? 1500 }

  // For display: the hold or the interval (ms), and the reason.
  get pace() {
    const held = this.#pacing.hold(this.#now)
    return { held, every: this.#pacing.interval(this.#core.activity()), why: this.#pacing.why }
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
    this.#world.cancel(this.#timer)
    this.#abort()
  }

  // Aborts a running or waiting poll, and polls at once.
  verify() {
    this.#running = true
    this.#world.cancel(this.#timer)
    if (this.#request) {
      this.#request.again = true
      this.#abort()
    } else this.#next(0, 0)
  }

  subscribe() { if (this.#running) this.verify() }

  // An element was altered on the way: request it again, in an armour. If it came by a socket, in a separate request; a
  // poll simply continues.
  mend(transport) {
    if (transport !== "polling") return this.#mend()
    if (this.#request) this.#request.rewritten = true
  }

  async #mend() {
    if (this.#mending) return this.#mendsAgain = true // newer than the running request
    this.#mending = true
    this.#mendsAgain = false
    const fields = this.#inputs(0)
    const ended = await this.#ask(fields, 10000).then(({ status, text }) => {
      const answer = status === 200 ? whole(this.#world.opened(text), fields) : null
      if (answer) this.#receive(within(this.#world.parse(answer)[0]), true)
      return answer || status === 204
    }).catch(() => false)
    this.#mending = false
    if (ended && this.#mendsAgain) this.#mend()
    if (!ended) this.#world.later(() => this.#core.resync(), MEND_AGAIN)
  }

  #ask(fields, within) { return this.#world.ask("GET", this.#config.changes_url, fields, { within }) }

  // User activity: a distant plain poll comes sooner.
  hasten() {
    if (this.#due === null || !this.#running || this.#request) return
    const left = Math.min(this.#due.at - this.#now, this.#pacing.interval(this.#core.activity()))
    this.#next(Math.max(0, left), this.#due.wait)
  }

  #next(delay, wait) {
    this.#world.cancel(this.#timer)
    this.#due = { at: this.#now + delay, wait }
    this.#timer = this.#world.later(() => this.#poll(wait), delay)
  }

  #poll(wait) {
    this.#due = null
    if (!this.#running || this.#request) return
    const fields = this.#inputs(wait)
    const request = { wait, fields, armour: this.#core.rewriters.isHere, startedAt: this.#now }
    this.#request = request
    request.abort = this.#world.poll(fields, 1000 * wait + ALLOWANCE, {
      accept: (answer) => this.#accept(request, answer), take: (elements) => this.#takeIn(request, elements),
      over: () => this.#over(request), end: () => this.#end(request),
    })
    if (!request.abort) {
      this.#over(request)
      return this.#end(request)
    }
    if (wait > 0) this.#beatLater(request)
  }

  #inputs(wait) {
    const { epoch, mark, feeds } = this.#core.plan()
    const { person } = this.#world.page // another person's session must not answer this page
    const armour = this.#core.rewriters.isHere ? [["armour", 1]] : []
    const cursors = Object.entries(feeds).map(([feed, cursor]) => ["c", `${feed}:${cursor}`])
    const history = mark ? [["mark", mark]] : []
    return [["epoch", epoch], ...history, ["person", person], ["wait", wait], ["short", 1], ...armour, ...cursors]
  }

  #abort() {
    this.#world.cancel(this.#heartbeat)
    if (this.#request && !this.#request.ended) this.#request.abort()
  }

  // → the text to swap in: only of a complete 200 with our mark. Else null, and the outcome gets a reason.
  #accept(request, answer) {
    const { status } = answer
    const isOk = status === 200
    const text = isOk ? this.#world.opened(answer.text) : answer.text
    const begun = isOk && [MARK, ARMOUR].some((mark) => text.includes(mark))
    const ours = isOk && whole(text, request.fields)
    if (ours && this.#running) return ours
    if (ours || status === 204) request.outcome = { ok: true, news: false }
    else if (status === 401) request.outcome = { signedOut: true }
    else if (answer.isRedirect) request.outcome = { reason: "redirected" }
    else if (status === 429) request.outcome = { reason: reasonOf(text, "rate-limited"), advice_ms: this.#advice(answer) }
    else if (begun && text.includes(END) && !request.armour) this.#noteRewriter(request) // wrapped by a middlebox
    else if (begun) request.outcome = { reason: "server-unreachable" } // truncated
    else if (status >= 500) request.outcome = { reason: reasonOf(text, "server-unreachable"), advice_ms: this.#advice(answer) }
    else request.outcome = { reason: "foreign-page" }
    return null
  }

  #advice(answer) { return advice(answer, this.#world.wall()) }

  #noteRewriter(request) {
    this.#core.rewriters.note()
    request.outcome = { ok: true, news: true }
    request.rewritten = true
  }

  #takeIn(request, elements) {
    if (!request.armour && !isAbout(elements, request.fields)) this.#noteRewriter(request)
    else request.outcome = { ok: true, news: true, ...this.#receive(elements, request.armour) }
  }

  #receive(elements, isArmoured) {
    const taken = { advanced: false, more: false }
    for (const element of [...elements]) {
      if (element.hasAttribute("more")) taken.more = true
      try {
        if (this.#core.receive(element, "polling", isArmoured)) taken.advanced = true
      } catch (error) { console.error(error) }
    }
    return taken
  }

  // The poll has ended; #end follows in a later task.
  #over(request) {
    request.ended = true
    this.#world.cancel(this.#heartbeat)
  }

  #end(request) {
    this.#request = null
    if (!this.#running) return
    if (request.again) return this.#next(0, 0)
    this.#conclude(request, request.outcome ?? { reason: "server-unreachable" })
  }

  #conclude(request, outcome) {
    const took = this.#now - request.startedAt
    if (outcome.signedOut) return this.#stopFor({ type: "unauthorized", by: "polling" })
    if (!outcome.ok) {
      const cut = request.wait > 0 && took > EARLY && !outcome.advice_ms
      if (cut && !outcome.quick) this.#pacing.cut(this.#now, took)
      return this.#stopFor({ type: "poll_failed", ...outcome, quick: (cut || outcome.quick) && !outcome.advice_ms })
    }
    const early = request.wait > 0 && !outcome.news && took < EARLY
    if (request.wait === 0) this.#measure(took)
    else if (early) this.#pacing.endedEarly(this.#now)
    else this.#pacing.held(took, outcome.news)
    this.#core.on({ type: "poll_answered" })
    if (!this.#running) return
    if (request.rewritten) return this.#next(0, 0)
    const unmoved = outcome.news && !outcome.advanced // something is wrong: avoid a tight loop
    const gap = this.#pacing.gap(this.#now, this.#core.activity(), outcome.news, !unmoved && !early)
    const wait = outcome.more ? 0 : Math.round(this.#pacing.hold(this.#now) / 1000)
    this.#next(outcome.more && !unmoved ? GAP : gap, wait)
    this.#core.paced()
  }

  // Stops; the state machine decides when to poll again.
  #stopFor(event) {
    this.#running = false
    this.#core.on(event)
  }

  #measure(sample) {
    this.#estimate = rttEstimate(this.#estimate, sample)
    const { srtt, rttvar } = this.#estimate
    this.#core.on({ type: "measured", rtt: Math.round(srtt), jitter: Math.round(rttvar) })
  }

  #beatLater(request) {
    const activity = this.#core.activity()
    this.#world.cancel(this.#heartbeat)
    this.#heartbeat = this.#world.later(() => this.#beat(request), BEATS[activity] ?? BEAT_LATER)
  }

  async #beat(request) {
    if (!this.#isRunning(request)) return
    if (!(this.#core.activity() in BEATS) || this.#beating) return this.#beatLater(request)
    const fields = request.fields.map(([name, value]) => [name, name === "wait" ? 0 : value])
    const startedAt = this.#now
    this.#beating = true
    try {
      const answer = await this.#ask(fields, this.rto)
      const { status } = answer
      const pause = [429, 503].includes(status) ? this.#advice(answer) : 0
      if ((status === 401 || pause) && request === this.#request) {
        this.#abortWith(pause ? { reason: "rate-limited", advice_ms: pause } : { signedOut: true })
      }
      if (answer.isRedirect && request === this.#request) this.#abortWith({ reason: "redirected", quick: true })
      if ([200, 204].includes(status)) this.#measure(this.#now - startedAt)
      if (status === 200) this.#world.later(() => this.#onBuffered(request), this.rto)
    } catch {
      // A very late timer means that the machine slept, not that the network failed.
      const slept = this.#now - startedAt > this.rto + 3000
      if (!slept && this.#isRunning(request)) this.#abortWith({ reason: "mute", quick: true })
    } finally {
      this.#beating = false
    }
    if (this.#isRunning(request)) this.#beatLater(request)
  }

  #isRunning(request) { return !request.ended && request === this.#request }

  #abortWith(outcome) {
    this.#request.outcome = outcome
    this.#abort()
  }

  // A heartbeat saw news that the held poll has not brought: a proxy buffers held answers.
  #onBuffered(request) {
    if (!this.#isRunning(request)) return
    this.#pacing.buffered(this.#now)
    this.verify()
  }
}

// Reasons by the error codes of our server; other answers are judged by their status.
const REASONS = { drill: "drill", storage: "server-storage" }
const reasonOf = (text, otherwise) => REASONS[codeOf(text)] ?? otherwise
