// Messages by POST, whatever transport reads: what the answer means, also where somebody else gave it.

const token = () => document.querySelector('meta[name="csrf-token"]')?.content ?? ""

// Milliseconds of a Retry-After header (seconds or a date), or 0.
export function advice(headers) {
  const value = headers?.get("Retry-After")
  if (!value) return 0
  const seconds = Number(value)
  return Math.max(0, Number.isFinite(seconds) ? seconds * 1000 : Date.parse(value) - Date.now() || 0)
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

export const isSignIn = (response, config) =>
  response.redirected && new URL(response.url).pathname === config.sign_in_url

// The same two answers as elements, from a WebSocket.
export const ackOf = (element) => Object.fromEntries(
  ["id", "position", "revision", "conversation"].map((name) => [name, element.getAttribute(name)]),
)

export function refusalOf(element) {
  const code = element.getAttribute("code")
  if (code !== "rate") return { refused: code, words: element.textContent }
  return { retry: "rate-limited", advice_ms: 1000 * Number(element.getAttribute("retry-after") || 1) }
}

export class Posts {
  #config; #on

  constructor(config, on) {
    this.#config = config
    this.#on = on
  }

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
    if (status === 401 || isSignIn(response, this.#config)) {
      this.#on({ type: "signed_out", reason: "signed-out" })
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
    if (isSignIn(response, this.#config) || (fresh && page.body.dataset.person !== document.body.dataset.person)) {
      this.#on({ type: "signed_out", reason: "signed-out" })
      return { retry: "signed-out" }
    }
    if (!fresh) return { retry: "foreign-page" }
    document.querySelector('meta[name="csrf-token"]').content = fresh
    for (const field of document.querySelectorAll("input[name=csrf_token]")) field.value = fresh
    return { retry: "renewed" }
  }
}
