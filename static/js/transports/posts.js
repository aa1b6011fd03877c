// Messages by POST, whatever transport reads, and what buttons ask for: what the answer means, also where somebody else
// gave it.

const token = () => document.querySelector('meta[name="csrf-token"]')?.content ?? ""

const LONGEST_PAUSE = 600000 // asked for by the server
const LONGEST_FOREIGN_PAUSE = 60000 // and by whoever answers in its place

// How long to wait by a Retry-After header (seconds or a date), or 0.
export function advice(headers, text) {
  const value = headers?.get("Retry-After")
  if (!value) return 0
  const seconds = Number(value)
  const now = Date.parse(headers.get("Date")) || Date.now() // by the clock that named the date
  const asked = Number.isFinite(seconds) ? seconds * 1000 : Date.parse(value) - now || 0
  return within(asked, codeOf(text) ? LONGEST_PAUSE : LONGEST_FOREIGN_PAUSE)
}

export const within = (asked, most = LONGEST_PAUSE) => Math.min(Math.max(0, asked), most)

// The code of a refusal in our words: {"error": {"code", "message"}}. Everything else comes from something on the way.
export function codeOf(text) {
  const code = parsed(text)?.error?.code
  return typeof code === "string" ? code : ""
}

function parsed(text) {
  try { return JSON.parse(text) } catch { return null }
}

export async function fetchWithin(ms, url, options = {}) {
  const abort = new AbortController()
  const timer = setTimeout(() => abort.abort(), ms)
  try {
    const response = await fetch(url, { credentials: "same-origin", cache: "no-store", ...options, signal: abort.signal })
    return { response, text: await response.text() }
  } finally {
    clearTimeout(timer)
  }
}

// The same two answers as elements, from a WebSocket.
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
  #config; #on

  constructor(config, on) {
    this.#config = config
    this.#on = on
  }

  // → {ok, ack} | {refused: code, words} | {retry: reason, advice_ms}
  send(entry) {
    const fields = { client_id: entry.id, body: entry.body, ...(entry.create && { id: entry.conversation }) }
    const { create_url: createUrl, messages_url: messagesUrl } = this.#config
    const url = entry.create ? createUrl : messagesUrl.replace("{id}", entry.conversation)
    return this.#post(url, fields, (response, data) => response.ok && Boolean(data?.id))
  }

  // What a button asks for, at once or not at all; with a fresh token where the page's is too old. Outcomes as above.
  async act(url, fields) {
    const ask = () => this.#post(url, fields, ({ status }) => status === 201 || status === 204)
    const outcome = await ask()
    return outcome.retry === "renewed" ? ask() : outcome
  }

  async #post(url, fields, isDone) {
    const body = new URLSearchParams({ ...fields, csrf_token: token() })
    try {
      const headers = { Accept: "application/json" }
      const { response, text } = await fetchWithin(10000, url, { method: "POST", body, headers, redirect: "manual" })
      return await this.#outcome(response, text, isDone)
    } catch {
      return { retry: "server-unreachable" }
    }
  }

  async #outcome(response, text, isDone) {
    const data = parsed(text)
    const code = codeOf(text)
    const { status, headers } = response
    if (isDone(response, data)) return { ok: true, ack: data }
    if (response.type === "opaqueredirect") return { retry: "redirected" }
    if (status === 401) {
      this.#on({ type: "signed_out", reason: "signed-out" })
      return { retry: "signed-out" }
    }
    if (code === "storage") return { retry: "server-storage", advice_ms: advice(headers, text), words: data.error.message }
    if (status === 429 || status >= 500) return { retry: "rate-limited", advice_ms: advice(headers, text) }
    if (code === "csrf") return this.#renew()
    if (status === 413) return { refused: "too-long" }
    if (code) return { refused: code, words: data.error.message }
    // A filter that dislikes this one text would hold up all that come after it.
    return status === 403 && !data ? { refused: "network-filter" } : { retry: "foreign-page" }
  }

  // Signed in again from another tab: the page's token is the old session's. Another person's session is not for us.
  async #renew() {
    const { response, text } = await fetchWithin(10000, location.href) // the one request that follows a redirect
    const isSignIn = response.redirected && new URL(response.url).pathname === this.#config.sign_in_url
    const page = new DOMParser().parseFromString(text, "text/html")
    const fresh = page.querySelector('meta[name="csrf-token"]')?.content
    if (isSignIn || (fresh && page.body.dataset.person !== document.body.dataset.person)) {
      this.#on({ type: "signed_out", reason: "signed-out" })
      return { retry: "signed-out" }
    }
    if (!fresh) return { retry: "foreign-page" }
    document.querySelector('meta[name="csrf-token"]').content = fresh
    for (const field of document.querySelectorAll("input[name=csrf_token]")) field.value = fresh
    return { retry: "renewed" }
  }
}
