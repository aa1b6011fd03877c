// The status in the header, the banner and the page /connection: clones the state's template and fills its slots. The
// page's script contains the templates, so that every state can be shown while the server is unreachable.

import { steadyClock } from "../browser/clock.js"
import { focusComposer } from "./composer.js"
import { isConnected } from "../connection/states.js"
import { announce } from "./announcer.js"
import { timeFormat } from "./dates.js"
import { words } from "./words.js"

const GRACE = 2500 // ms; a shorter outage needs no banner
const WAKE_GRACE = 8000
const TRYING = 700 // ms; the least time that "trying" is shown after a press
const TRIED = 4000 // ms that the outcome is shown
const MOST_DISMISSED = 20
// Reasons that count as the same notice.
const SAME = { "upgrade-failed": "blocked", "upgrade-refused": "blocked", "upgrade-hung": "blocked", mute: "blocked" }
// ms. For waits that show "5" or more: the 5 s ceiling is jittered downwards, and shown seconds are rounded up.
const COUNTDOWN_FROM = 4000

// The record's monotonic clock may stop while the machine sleeps. So lastConnected is converted to wall time once, when
// it changes.
const noted = { lastConnected: null, at: null }

function wallTime(lastConnected) {
  if (lastConnected !== noted.lastConnected) {
    const at = lastConnected ? new Date(Date.now() - (steadyClock() - lastConnected)) : null
    Object.assign(noted, { lastConnected, at })
  }
  return noted.at
}

const byId = (id) => document.getElementById(id)

const timeLeft = ({ nextRetryAt }) => nextRetryAt ? nextRetryAt - steadyClock() : 0

const seconds = (ms) => String(Math.round(ms / 100) / 10)

// Publishes the record: an event for scripts, attributes for styles and tests.
export function publish(record) {
  const { status, connectionType, reason, reconnectAttempts, lastConnected, qualityLevel } = record
  document.body.dataset.connection = status
  const element = byId("connection-status")
  if (element) {
    Object.assign(element.dataset, {
      state: status, transport: isConnected(status) ? connectionType : "none", reason: reason ?? "",
      attempts: reconnectAttempts, lastConnected: wallTime(lastConnected)?.toISOString() ?? "",
      quality: qualityLevel,
    })
  }
  document.dispatchEvent(new CustomEvent("connection:changed", { detail: record }))
}

export class StatusView {
  #connection; #mostAttempts; #prefix; #record = null; #shown = {}; #slots = {}
  #since = 0; #wokeAt = -Infinity; #dismissed; #wait = 0; #timer = null; #press = null

  constructor(connection, config) {
    this.#connection = connection
    this.#mostAttempts = config.max_attempts
    this.#prefix = config.sign_in_url.replace(/\/sign-in$/, "")
    this.#dismissed = new Dismissed(config.network)
    document.addEventListener("connection:changed", ({ detail }) => this.#onChange(detail))
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.#wokeAt = performance.now() })
    document.addEventListener("click", (event) => {
      const action = event.target.closest?.("[data-action]")?.dataset.action
      if (action === "retry") this.#retry()
      if (action === "dismiss") this.#dismiss()
    })
  }

  #onChange(record) {
    if (record.status !== this.#record?.status) this.#since = performance.now()
    if (record.nextRetryAt !== this.#record?.nextRetryAt) this.#wait = timeLeft(record)
    this.#record = record
    this.#draw()
  }

  // A timer redraws for the countdown, for the banner after its grace, and after a press.
  #draw() {
    clearTimeout(this.#timer)
    const record = this.#record
    const pressed = this.#watchPress(record)
    this.#slots = this.#values(record)
    this.#show(byId("connection-status"), "status", record.status)
    const grace = this.#graceLeft(record)
    const isKnown = record.status === "polling" && this.#dismissed.has(record.reason)
    this.#show(byId("banner"), "banner", grace <= 0 && !isKnown ? record.status : null)
    for (const button of document.querySelectorAll("[data-action=retry]")) button.setAttribute("aria-busy", Boolean(this.#press?.isTrying))
    fill(byId("connection-record"), this.#rows(record))
    const next = Math.min(grace > 0 ? grace + 10 : Infinity, this.#slots.countdown ? 1000 : Infinity, pressed)
    if (Number.isFinite(next)) this.#timer = setTimeout(() => this.#draw(), next)
  }

  #retry() {
    this.#press = { isTrying: true, at: performance.now(), said: "" }
    this.#connection.retry()
    this.#draw()
  }

  // After a press of Try now: "trying", then the outcome, then the usual label. → ms until the next redraw
  #watchPress(record) {
    const press = this.#press
    if (!press) return Infinity
    const now = performance.now()
    const isBusy = record.ws === "opening" || record.poll === "trying" || "attempt" in record.timers
    const isPaused = record.notBefore > steadyClock()
    if (record.status === "connected") this.#press = null
    else if (!press.isTrying) {
      if (now - press.at < TRIED) return TRIED
      this.#press = null
    } else if (!isPaused && (isBusy || now - press.at < TRYING)) return TRYING
    else {
      this.#press = { isTrying: false, at: now, said: triedText(record) }
      announce(this.#press.said)
      return TRIED
    }
    return Infinity
  }

  #graceLeft(record) {
    if (["connected", "connecting", "error", "disconnected"].includes(record.status)) return 0
    const now = performance.now()
    const grace = now - this.#wokeAt < WAKE_GRACE ? WAKE_GRACE : GRACE
    return this.#since + grace - now
  }

  #show(holder, kind, state) {
    if (!holder) return
    const template = state && byId(`${kind}-${state}`)
    if (kind === "banner") holder.hidden = !template
    if (this.#shown[kind] !== state) {
      this.#shown[kind] = state
      const hadFocus = holder.contains(document.activeElement) && document.activeElement.dataset.action
      holder.replaceChildren(...(template ? [template.content.cloneNode(true)] : []))
      const link = holder.querySelector('a[data-action="sign-in"]')
      if (link) link.search = new URLSearchParams({ next: this.#path })
      if (hadFocus) holder.querySelector(`[data-action="${hadFocus}"]`)?.focus()
      if (hadFocus && !holder.contains(document.activeElement)) focusComposer()
    }
    fill(holder, this.#slots)
  }

  #values(record) {
    const left = timeLeft(record)
    const pace = this.#connection.pace
    const note = this.#press ? this.#press.said || words("trying") : ""
    const quality = note ? "" : troubleText(record)
    return {
      note, quality,
      pressed: note || words(record.status === "error" ? "retry" : "try-now"),
      retry: record.reason === "redirected" ? "" : "yes", reload: record.reason === "redirected" ? "yes" : "",
      rtt: note || quality || record.rtt === null ? "" : words("rtt", record.rtt) || `${record.rtt} ms`,
      interval: note ? "" : pace.held ? words("held") : words("every", seconds(pace.every)),
      pace: pace.why === "held" ? "" : words(`pace-${pace.why}`, seconds(pace.held)),
      attempt: note ? "" : record.reconnectAttempts || "",
      most: this.#mostAttempts,
      countdown: !note && this.#wait > COUNTDOWN_FROM && left > 0 ? Math.ceil(left / 1000) : "",
      queued: note ? "" : record.queued || "", waiting: record.queued || "",
      reason: record.reason ? words(`reason-${record.reason}`) : "",
    }
  }

  // The rows of the record on the page /connection.
  #rows(record) {
    const left = Math.max(0, timeLeft(record))
    return {
      state: words(`state-${record.status}`),
      transport: words(`transport-${isConnected(record.status) ? record.connectionType : "none"}`),
      rtt: record.rtt === null ? words("none") : words("rtt", record.rtt),
      quality: qualityText(record),
      attempts: record.reconnectAttempts,
      "last-connected": record.lastConnected ? timeFormat.format(wallTime(record.lastConnected)) : words("never"),
      "next-retry": left ? words("in-seconds", Math.ceil(left / 1000)) : words("none"),
      queued: record.queued,
      pace: record.status === "polling" ? [this.#slots.interval, this.#slots.pace].filter(Boolean).join(": ") : words("none"),
      reason: this.#slots.reason || words("none"),
      mend: words(`mend-${record.reason}`, location.origin) || words("none"),
    }
  }

  // The path to return to after sign-in, without the URL prefix.
  get #path() { return location.pathname.slice(this.#prefix.length) }

  #dismiss() {
    this.#dismissed.add(this.#record?.reason)
    this.#draw()
    focusComposer()
  }
}

// Dismissed notices, by network and reason, so that they stay hidden on the next page. "websocket-off" is a setting of
// the server: the same on every network.
class Dismissed {
  #network; #key; #names

  constructor(network) {
    const { instance, person } = document.body.dataset
    this.#network = network
    this.#key = `${instance}:${person}:dismissed`
    try { this.#names = JSON.parse(localStorage.getItem(this.#key)) ?? [] } catch { this.#names = [] }
  }

  #nameOf(reason) { return reason === "websocket-off" ? reason : `${this.#network} ${SAME[reason] ?? reason}` }

  has(reason) { return this.#names.includes(this.#nameOf(reason)) }

  add(reason) {
    if (this.has(reason)) return
    this.#names = [...this.#names, this.#nameOf(reason)].slice(-MOST_DISMISSED)
    try { localStorage.setItem(this.#key, JSON.stringify(this.#names)) } catch (error) { console.error(error) }
  }
}

// The outcome of Try now, if it did not lead to "connected".
function triedText(record) {
  const left = record.notBefore - steadyClock()
  if (left > 0) return words("tried-paused", Math.ceil(left / 1000))
  if (record.status === "disconnected") return words("tried-disconnected")
  if (record.status !== "polling") return words("tried-none")
  return words(record.reason === "websocket-off" ? "tried-up-to-date" : "tried-polling")
}

// "poor: long round trips"; "" if the quality is good.
function troubleText({ qualityLevel: level, qualityLimit: limit }) {
  if (!["fair", "poor"].includes(level)) return ""
  return words(`quality-${level}`) + (limit ? words("because", words(`limit-${limit}`)) : "")
}

// "78 of 100, good: long round trips"
function qualityText({ quality, qualityLevel, qualityLimit }) {
  if (quality === null) return words("quality-unknown")
  const limit = qualityLimit && qualityLevel !== "excellent" ? `: ${words(`limit-${qualityLimit}`)}` : ""
  return `${words("quality-score", quality)}, ${words(`quality-${qualityLevel}`)}${limit}`
}

function fill(holder, values) {
  if (!holder) return
  for (const slot of holder.querySelectorAll("[data-slot]")) {
    const value = values[slot.dataset.slot]
    if (value === undefined) continue
    const isEmpty = value === ""
    const text = String(value)
    if (!isEmpty && slot.textContent !== text) slot.textContent = text
  }
  for (const part of holder.querySelectorAll("[data-if]")) part.hidden = values[part.dataset.if] === ""
}
