// The polling transport: htmx sends the hidden form #poll and swaps the answer into #inbox; sends go by POST.
// Same interface as websocket.js: open, close, send, subscribe, verify. An answer without the product's mark is never
// swapped in: it is a named failure. Beside a held poll, a small heartbeat notices that its socket hangs.

import { rttEstimate } from "../delays.js"

const MARK = "<chat-answer"
const PLAIN_FOR = 5 * 60000 // after holds proved useless here, before they are tried again
const GAP = 20
const BEATS = { awaiting: 2000, active: 5000, visible: 5000, idle: 15000 } // not while hidden or offline
const BEAT_LATER = 5000

const token = () => document.querySelector('meta[name="csrf-token"]')?.content ?? ""

// Milliseconds of a Retry-After header (seconds or a date), or 0.
function advice(headers) {
  const value = headers?.get("Retry-After")
  if (!value) return 0
  const seconds = Number(value)
  return Math.max(0, Number.isFinite(seconds) ? seconds * 1000 : Date.parse(value) - Date.now() || 0)
}

async function fetchWithin(ms, url, options = {}) {
  const abort = new AbortController()
  const timer = setTimeout(() => abort.abort(), ms)
  try {
    const response = await fetch(url, { credentials: "same-origin", cache: "no-store", ...options, signal: abort.signal })
    return { response, text: await response.text() }
  } finally {
    clearTimeout(timer)
  }
}

export class PollingTransport {
  #config; #world; #form; #inbox
  #running = false; #request = null; #timer = null; #heartbeat = null; #beating = false
  #estimate = null; #early = 0; #cuts = 0; #plainUntil = 0

  // world: {on, receive, plan() → {epoch, feeds}, activity() → "awaiting" | "visible" | "hidden"}
  constructor(config, world) {
    this.#config = config
    this.#world = world
    this.#form = document.getElementById("poll")
    this.#inbox = document.getElementById("inbox")
    const listen = (name, take) => this.#form?.addEventListener(name, (event) => {
      if (name === "htmx:config:request" ? this.#request : event.detail.ctx === this.#request?.ctx) take(event)
    })
    listen("htmx:config:request", ({ detail }) => {
      this.#request.ctx = detail.ctx
      detail.ctx.request.timeout = this.#request.wait * 1000 + 6000
    })
    listen("htmx:after:request", (event) => this.#gate(event))
    listen("htmx:after:swap", () => this.#takeIn())
    listen("htmx:finally:request", () => this.#end(this.#request))
  }

  get rto() { return this.#estimate?.rto ?? 1500 }

  // What people are shown: are polls held open, or how far apart are they (ms)?
  get pace() { return this.#holds() ? { held: true } : { held: false, every: this.#config.poll_ms } }

  open() {
    if (this.#running) return
    this.#running = true
    this.#next(0, 0)
  }

  close() {
    this.#running = false
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

  // → {ok, ack} | {refused: code, words} | {retry: reason, advice_ms}
  async send(entry) {
    const body = new URLSearchParams({ csrf_token: token(), client_id: entry.id, body: entry.body })
    if (entry.create) body.set("id", entry.conversation)
    const { create_url: createUrl, messages_url: messagesUrl } = this.#config
    const url = entry.create ? createUrl : messagesUrl.replace("{id}", entry.conversation)
    try {
      const headers = { Accept: "application/json" }
      const { response, text } = await fetchWithin(10000, url, { method: "POST", body, headers })
      return this.#outcome(response, text)
    } catch {
      return { retry: "server-unreachable" }
    }
  }

  #outcome(response, text) {
    let data = null
    try { data = JSON.parse(text) } catch { /* not ours: judged by its status below */ }
    const { status } = response
    if (response.ok && data?.id) return { ok: true, ack: data }
    if (status === 401 || this.#isSignIn(response)) {
      this.#world.on({ type: "signed_out", reason: "signed-out" })
      return { retry: "signed-out" }
    }
    if (status === 429 || status >= 500) return { retry: "rate-limited", advice_ms: advice(response.headers) }
    if (data?.error?.code === "csrf") return this.#renew()
    if (data?.error) return { refused: data.error.code ?? "refused", words: data.error.message }
    if (status === 413) return { refused: "too-long" }
    if (status === 404 || status === 410) return { refused: "gone" }
    if (status >= 400 && status !== 407 && status !== 408) return { refused: "network-filter" }
    return { retry: "foreign-page" }
  }

  // Signed in anew from another tab: the page's token is the old session's. Another person's session is not for us.
  async #renew() {
    const { response, text } = await fetchWithin(10000, location.href)
    const page = new DOMParser().parseFromString(text, "text/html")
    const fresh = page.querySelector('meta[name="csrf-token"]')?.content
    if (this.#isSignIn(response) || (fresh && page.body.dataset.person !== document.body.dataset.person)) {
      this.#world.on({ type: "signed_out", reason: "signed-out" })
      return { retry: "signed-out" }
    }
    if (!fresh) return { retry: "foreign-page" }
    document.querySelector('meta[name="csrf-token"]').content = fresh
    for (const field of document.querySelectorAll("input[name=csrf_token]")) field.value = fresh
    return { retry: "renewed" }
  }

  #isSignIn(response) {
    return response.redirected && new URL(response.url).pathname === this.#config.sign_in_url
  }

  #holds() { return this.#config.poll_hold_ms > 0 && Date.now() >= this.#plainUntil }

  #next(delay, wait) {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.#ask(wait), delay)
  }

  #ask(wait) {
    if (!this.#running || this.#request) return
    const htmx = window.htmx
    if (!this.#form || !htmx) return this.#fail({ reason: "server-unreachable" })
    const { epoch, feeds } = this.#world.plan()
    const cursors = Object.entries(feeds).map(([feed, cursor]) => ["c", `${feed}:${cursor}`])
    const { person } = document.body.dataset // another person's session must not answer this page
    const inputs = [["epoch", epoch], ["person", person], ["wait", wait], ...cursors].map(([name, value]) => {
      return Object.assign(document.createElement("input"), { type: "hidden", name, value })
    })
    this.#form.replaceChildren(...inputs)
    this.#request = { wait, startedAt: performance.now(), query: new URLSearchParams(new FormData(this.#form)) }
    htmx.process(this.#form)
    htmx.trigger(this.#form, "chat:poll")
    if (wait > 0) this.#scheduleHeartbeat(this.#request)
  }

  #abort() {
    clearTimeout(this.#heartbeat)
    if (this.#request && !this.#request.ended) window.htmx?.trigger(this.#form, "htmx:abort")
  }

  // Only a 200 that carries the mark goes on to be swapped; whatever else came gets a name.
  #gate(event) {
    const { ctx } = event.detail
    const { status, headers, raw } = ctx.response
    const ours = status === 200 && ctx.text.trimStart().startsWith(MARK)
    if (ours && this.#running) return
    event.preventDefault()
    ctx.hx = {} // a foreign answer's HX-* headers are not obeyed either
    if (ours || status === 204) this.#request.outcome = { ok: true, news: false }
    else if (status === 401 || this.#isSignIn(raw)) this.#request.outcome = { signedOut: true }
    else if (status === 429) this.#request.outcome = { reason: "rate-limited", advice_ms: advice(headers) }
    else if (status === 403 && ctx.text.startsWith("{")) this.#request.outcome = { refused: true }
    else if (status >= 500) this.#request.outcome = { reason: "server-unreachable", advice_ms: advice(headers) }
    else this.#request.outcome = { reason: "foreign-page" }
  }

  #takeIn() {
    const answer = this.#inbox.querySelector("chat-answer")
    let advanced = false
    let more = false
    for (const element of [...(answer?.children ?? [])]) {
      if (element.hasAttribute("more")) more = true
      try {
        if (this.#world.receive(element, "polling")) advanced = true
      } catch (error) { console.error(error) }
    }
    this.#inbox.replaceChildren()
    this.#request.outcome = { ok: true, news: true, advanced, more }
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
    if (outcome.refused) return this.#stopFor({ type: "refused", reason: "refused" })
    if (!outcome.ok) {
      const cut = request.wait > 0 && took > 1000
      if (cut && ++this.#cuts >= 2) this.#goPlain()
      const quick = (cut || outcome.quick) && !outcome.advice_ms
      return this.#fail({ ...outcome, quick: Boolean(quick) })
    }
    if (request.wait === 0) this.#measure(took)
    else if (!outcome.news && took < 1000) {
      if (++this.#early >= 2) this.#goPlain()
    } else this.#early = this.#cuts = 0
    this.#world.on({ type: "poll_answered" })
    if (!this.#running) return
    const unmoved = outcome.news && !outcome.advanced // something is wrong: never ask in a tight loop
    const early = request.wait > 0 && !outcome.news && took < 1000
    const soon = this.#holds() || (outcome.more && !unmoved)
    const wait = outcome.more || !this.#holds() ? 0 : Math.round(this.#config.poll_hold_ms / 1000)
    this.#next(soon && !unmoved && !early ? GAP : this.#config.poll_ms, wait)
  }

  #goPlain() {
    this.#early = this.#cuts = 0
    this.#plainUntil = Date.now() + PLAIN_FOR
  }

  #fail(outcome) { this.#stopFor({ type: "poll_failed", ...outcome }) }

  // The machine decides when to ask again.
  #stopFor(event) {
    this.#running = false
    this.#world.on(event)
  }

  #measure(sample) {
    this.#estimate = rttEstimate(this.#estimate, sample)
    this.#world.on({ type: "measured", rtt: Math.round(this.#estimate.srtt) })
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
      const { response } = await fetchWithin(this.rto, `${this.#config.changes_url}?${query}`)
      if (response.status === 401 && request === this.#request) {
        request.outcome = { signedOut: true }
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
    this.#cuts = 0
    this.#abort()
  }

  // A plain request saw news that the held one still has not brought: something on the way keeps held answers back.
  #suspectBuffering(request) {
    if (request.ended || request !== this.#request) return
    this.#goPlain()
    this.verify()
  }
}
