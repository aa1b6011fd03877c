// POST requests of messages and buttons: the outcome of an answer, also of a foreign one.

import { ENDED } from "./states.js"

const LONGEST_PAUSE = 600000 // ms; limit of a Retry-After of our server
const FOREIGN_PAUSE = 60000 // ms; of any other server
const WITHIN = 10000 // ms for an answer

// The wait in ms by a Retry-After header (seconds or a date), or 0. wall: the time of the system clock
export function advice({ header, text }, wall) {
  const value = header("Retry-After")
  if (!value) return 0
  const seconds = Number(value)
  const now = Date.parse(header("Date")) || wall // by the clock of the sender
  const asked = Number.isFinite(seconds) ? seconds * 1000 : Date.parse(value) - now || 0
  return within(asked, codeOf(text) ? LONGEST_PAUSE : FOREIGN_PAUSE)
}

export const within = (asked, most = LONGEST_PAUSE) => Math.min(Math.max(0, asked), most)

// The code of an error of our server, {"error": {"code", "message"}}; "" if another server answered.
export function codeOf(text) {
  const code = parsed(text)?.error?.code
  return typeof code === "string" ? code : ""
}

function parsed(text) {
  try { return JSON.parse(text) } catch { return null }
}

// Acknowledgement and refusal as elements, from a WebSocket.
export const ackOf = (element) => Object.fromEntries(
  ["id", "position", "revision", "conversation"].map((name) => [name, element.getAttribute(name)]),
)

export function refusalOf(element) {
  const code = element.getAttribute("code")
  const pause = { rate: "rate-limited", storage: "server-storage" }[code]
  if (!pause) return { refused: code, words: element.textContent }
  return { retry: pause, advice_ms: within(1000 * Number(element.getAttribute("retry-after") || 1)) }
}

export class Posts {
  #config; #world; #access; #on

  constructor(config, world, access, on) {
    this.#config = config
    this.#world = world
    this.#access = access
    this.#on = on
  }

  // → {ok, ack} | {refused: code, words} | {retry: reason, advice_ms}
  send(entry) {
    const fields = { client_id: entry.id, body: entry.body, ...(entry.create && { id: entry.conversation }) }
    const { create_url: createUrl, messages_url: messagesUrl } = this.#config
    const url = entry.create ? createUrl : messagesUrl.replace("{id}", entry.conversation)
    return this.#post(url, fields, ({ status }, data) => status >= 200 && status < 300 && Boolean(data?.id))
  }

  // The action of a button: not repeated, except after a renewal. → an outcome as of send
  async act(url, fields) {
    const ask = () => this.#post(url, fields, ({ status }) => [201, 204].includes(status))
    const outcome = await ask()
    return outcome.retry === "renewed" ? ask() : outcome
  }

  async #post(url, fields, isDone) {
    try {
      const all = [...Object.entries(fields), ["csrf_token", this.#world.session.token]]
      return await this.#outcome(await this.#world.ask("POST", url, all, { within: WITHIN }), isDone)
    } catch {
      return { retry: "server-unreachable" }
    }
  }

  async #outcome(answer, isDone) {
    const { status, text } = answer
    const data = parsed(text)
    const code = codeOf(text)
    const pause = advice(answer, this.#world.wall())
    if (isDone(answer, data)) return { ok: true, ack: data }
    if (answer.isRedirect) return { retry: "redirected" }
    if (status === 401) return this.#renewed(await this.#access.renew())
    if (code === "storage") return { retry: "server-storage", advice_ms: pause, words: data.error.message }
    if (status === 429 || status >= 500) return { retry: "rate-limited", advice_ms: pause }
    if (code === "csrf") return this.#renewed(await this.#world.session.refresh())
    if (status === 413) return { refused: "too-long" }
    if (code) return { refused: code, words: data.error.message }
    // A network filter refuses this text: retries would block the messages behind it.
    return status === 403 && !data ? { refused: "network-filter" } : { retry: "foreign-page" }
  }

  // Another person's session counts as signed out.
  #renewed(outcome) {
    if (outcome === "unknown") return { retry: "server-unreachable" }
    if (ENDED.includes(outcome)) this.#on({ type: "signed_out", reason: outcome })
    return { retry: outcome }
  }
}
