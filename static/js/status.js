// The status in the header, the banner and the page /connection: clones the state's template and fills its slots. The
// templates came with the page, so that every state shows with the server out of reach.

import { focusComposer } from "./composer.js"
import { isConnected } from "./states.js"
import { steadyClock } from "./surroundings.js"

const GRACE = 2500 // a trouble shorter than this needs no banner
const GRACE_AFTER_WAKE = 8000
// A wait that reads "5" or more: the ceiling of 5 s is jittered downwards, so it is the rounded second that counts.
const COUNTDOWN_FROM = 4000

// The words that scripts show, from <template id="words">; {n} is replaced.
export function words(key, n) {
  const text = document.getElementById("words")?.content.querySelector(`[data-word="${CSS.escape(key)}"]`)?.textContent
  return text === undefined ? "" : text.replace("{n}", () => n)
}

const language = document.documentElement.lang || undefined
const clockFormat = new Intl.DateTimeFormat(language, { hour: "2-digit", minute: "2-digit" })
const timeFormat = new Intl.DateTimeFormat(language, { timeStyle: "medium" })
const dayFormat = new Intl.DateTimeFormat(language, { weekday: "long", day: "numeric", month: "long", year: "numeric" })
const fullFormat = new Intl.DateTimeFormat(language, { dateStyle: "full", timeStyle: "medium" })

function clock(at) {
  const age = Date.now() - new Date(at)
  return age >= 0 && age < 45000 ? words("just-now") : clockFormat.format(new Date(at))
}

// A time is served without words: the browser has its own clock and language.
export function wordTime(time) {
  const text = time && clock(time.dateTime)
  if (!time || time.textContent === text) return
  Object.assign(time, { textContent: text, title: fullFormat.format(new Date(time.dateTime)) })
}

export function daySeparator(at) {
  const separator = Object.assign(document.createElement("div"), { className: "day" })
  separator.setAttribute("role", "separator")
  separator.dataset.at = at
  wordDay(separator)
  return separator
}

function wordDay(separator) {
  const date = new Date(separator.dataset.at)
  const yesterday = new Date()
  yesterday.setDate(yesterday.getDate() - 1)
  let text = dayFormat.format(date)
  if (date.toDateString() === new Date().toDateString()) text = words("today")
  else if (date.toDateString() === yesterday.toDateString()) text = words("yesterday")
  if (separator.textContent !== text) separator.textContent = text
}

// Anew each minute: what was just now, or today, is not for long.
export function wordTimes(holder) {
  holder?.querySelectorAll("time[datetime]").forEach(wordTime)
  holder?.querySelectorAll(".day").forEach(wordDay)
}

const seconds = (ms) => String(Math.round(ms / 100) / 10)

// The one place where the record becomes visible: an event for scripts, attributes for styles and tests.
export function publish(record) {
  const { status, connectionType, reason, reconnectAttempts, lastConnected, qualityLevel } = record
  document.body.dataset.connection = status
  const element = document.getElementById("connection-status")
  if (element) {
    Object.assign(element.dataset, {
      state: status, transport: isConnected(status) ? connectionType : "none", reason: reason ?? "",
      attempts: reconnectAttempts, lastConnected: lastConnected ? new Date(lastConnected).toISOString() : "",
      quality: qualityLevel,
    })
  }
  document.dispatchEvent(new CustomEvent("connection:changed", { detail: record }))
}

export class StatusView {
  #connection; #mostAttempts; #prefix; #record = null; #shown = {}; #slots = {}
  #since = 0; #wokeAt = -Infinity; #dismissed = null; #wait = 0; #timer = null

  constructor(connection, config) {
    this.#connection = connection
    this.#mostAttempts = config.max_attempts
    this.#prefix = config.sign_in_url.replace(/\/sign-in$/, "")
    document.addEventListener("connection:changed", ({ detail }) => this.#onChange(detail))
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.#wokeAt = performance.now() })
    document.addEventListener("click", (event) => {
      const action = event.target.closest?.("[data-action]")?.dataset.action
      if (action === "retry") connection.retry()
      if (action === "dismiss") this.#dismiss()
    })
  }

  #onChange(record) {
    if (record.status !== this.#record?.status) {
      this.#since = performance.now()
      if (record.status !== "polling" && record.status !== "connecting") this.#dismissed = null
    }
    if (record.nextRetryAt !== this.#record?.nextRetryAt) this.#wait = record.nextRetryAt ? record.nextRetryAt - steadyClock() : 0
    this.#record = record
    this.#draw()
  }

  // One timer draws what changes by itself: the countdown, and the banner once its grace is over.
  #draw() {
    clearTimeout(this.#timer)
    const record = this.#record
    this.#slots = this.#values(record)
    this.#show(document.getElementById("connection-status"), "status", record.status)
    const grace = this.#graceLeft(record)
    const banner = grace <= 0 && this.#dismissed !== record.status ? record.status : null
    this.#show(document.getElementById("banner"), "banner", banner)
    fill(document.getElementById("connection-record"), this.#facts(record))
    const next = Math.min(grace > 0 ? grace + 10 : Infinity, this.#slots.countdown ? 1000 : Infinity)
    if (Number.isFinite(next)) this.#timer = setTimeout(() => this.#draw(), next)
  }

  #graceLeft(record) {
    if (["connected", "connecting"].includes(record.status)) return 0
    if (["error", "disconnected"].includes(record.status)) return 0
    const now = performance.now()
    const grace = now - this.#wokeAt < GRACE_AFTER_WAKE ? GRACE_AFTER_WAKE : GRACE
    return this.#since + grace - now
  }

  #show(holder, kind, state) {
    if (!holder) return
    const template = state && document.getElementById(`${kind}-${state}`)
    if (kind === "banner") holder.hidden = !template
    if (this.#shown[kind] !== state) {
      this.#shown[kind] = state
      const hadFocus = holder.contains(document.activeElement) && document.activeElement.dataset.action
      holder.replaceChildren(...(template ? [template.content.cloneNode(true)] : []))
      const door = holder.querySelector('a[data-action="sign-in"]')
      if (door) door.search = new URLSearchParams({ next: this.#path })
      if (hadFocus) holder.querySelector(`[data-action="${hadFocus}"]`)?.focus()
      if (hadFocus && !holder.contains(document.activeElement)) focusComposer()
    }
    fill(holder, this.#slots)
  }

  #values(record) {
    const left = record.nextRetryAt ? record.nextRetryAt - steadyClock() : 0
    const pace = this.#connection.pace
    return {
      rtt: record.rtt === null ? "" : words("rtt", record.rtt) || `${record.rtt} ms`,
      interval: pace.held ? words("held") : words("every", seconds(pace.every)),
      pace: pace.why === "held" ? "" : words(`pace-${pace.why}`, seconds(pace.held)),
      quality: ["fair", "poor"].includes(record.qualityLevel) ? words(`quality-${record.qualityLevel}`) : "",
      attempt: record.reconnectAttempts || "",
      most: this.#mostAttempts,
      countdown: this.#wait > COUNTDOWN_FROM && left > 0 ? Math.ceil(left / 1000) : "",
      queued: record.queued || "",
      reason: record.reason ? words(`reason-${record.reason}`) : "",
    }
  }

  // The page /connection shows the record itself.
  #facts(record) {
    const left = record.nextRetryAt ? Math.max(0, record.nextRetryAt - steadyClock()) : 0
    const carries = isConnected(record.status)
    return {
      state: words(`state-${record.status}`),
      transport: words(`transport-${carries ? record.connectionType : "none"}`),
      rtt: this.#slots.rtt || words("none"),
      quality: wordQuality(record),
      attempts: record.reconnectAttempts,
      "last-connected": record.lastConnected ? timeFormat.format(new Date(record.lastConnected)) : words("never"),
      "next-retry": left ? words("in-seconds", Math.ceil(left / 1000)) : words("none"),
      queued: record.queued,
      pace: record.status === "polling" ? [this.#slots.interval, this.#slots.pace].filter(Boolean).join(": ") : words("none"),
      reason: this.#slots.reason || words("none"),
    }
  }

  // Where to come back to after signing in, without the URL prefix.
  get #path() { return location.pathname.slice(this.#prefix.length) }

  #dismiss() {
    this.#dismissed = this.#record?.status
    this.#draw()
  }
}

// "78 of 100, good: long round trips"
function wordQuality({ quality, qualityLevel, qualityLimit }) {
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
