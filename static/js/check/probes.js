// The network I/O of a connection test: a GET, read as it streams, and a WebSocket. No judgement, no DOM.

const OPEN = 8000 // ms
const HELLO = 4000 // ms from the 101 to the first frame, and for an echo
const CUT_AFTER = 900 // ms; a request that fails later had reached something
const END = "</chat-test>"
const SWITCHING = 101 // Switching Protocols: the answer to an upgrade
const NORMAL = 1000 // close code

const now = () => performance.now()
const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms) })

async function until(condition, ms) {
  const end = now() + ms
  while (!condition() && now() < end) await pause(15)
  return condition()
}

// One GET, read as it streams. → facts for verdicts.js. A browser hides why a request failed: the time it took, and
// isReached (the server answered before), distinguish a cut from an unreachable server.
export async function ask(url, within, mark, isReached) {
  const facts = { error: null, status: 0, redirected: false, text: "", at: [], headers: "" }
  const started = now()
  const elapsed = () => Math.round(now() - started)
  const abort = new AbortController()
  const timer = setTimeout(() => abort.abort(), within)
  try {
    const options = { cache: "no-store", redirect: "manual", headers: { "X-Chatapp-Test": "1" }, signal: abort.signal }
    const response = await fetch(url, options)
    facts.headers = ` ${response.headers.get("Server") ?? ""} ${response.headers.get("Via") ?? ""}`
    facts.status = response.status
    facts.redirected = response.type === "opaqueredirect"
    const reader = response.body?.getReader()
    const decoder = new TextDecoder()
    for (let chunk; reader && !(chunk = await reader.read()).done;) {
      facts.at.push(elapsed())
      facts.text += decoder.decode(chunk.value, { stream: true })
    }
  } catch {
    const wasReached = isReached || facts.status || elapsed() > CUT_AFTER
    facts.error = abort.signal.aborted ? "hung" : wasReached ? "cut" : "unreachable"
  }
  clearTimeout(timer)
  facts.marked = facts.text.trimStart().startsWith(mark)
  facts.complete = facts.text.trimEnd().endsWith(END)
  return { ...facts, ms: elapsed() }
}

// One WebSocket. `frames`: received so far; times by performance.now().
export class Line {
  #socket; opened = false; closed = false; closedAt = 0; frames = []

  constructor(url) {
    try { this.#socket = new WebSocket(url) } catch { this.closed = true; return }
    this.#socket.onopen = () => { this.opened = true }
    this.#socket.onmessage = ({ data }) => this.frames.push({ text: String(data), at: now() })
    this.#socket.onclose = () => { this.closed = true; this.closedAt = now() }
  }

  get hello() { return this.frames.some(({ text }) => text.startsWith("<chat-hello")) }

  async open() {
    await until(() => this.opened || this.closed, OPEN)
    if (!this.opened) return this.#facts(this.closed ? null : "hung")
    await until(() => this.hello || this.closed, HELLO)
    return this.#facts(this.hello ? null : this.closed ? "cut" : "hung")
  }

  // → the round trip in ms, or null without an answer
  async echo(n) {
    const started = now()
    const answer = () => this.frames.find(({ text }) => text.includes(`<chat-echo n="${n}"`))
    if (!this.closed) this.#socket.send(JSON.stringify({ type: "echo", n }))
    await until(() => answer() || this.closed, HELLO)
    return answer() ? Math.round(answer().at - started) : null
  }

  // Sends nothing for this time (the browser answers the server's pings), then one echo.
  async idle(ms) {
    const started = now()
    await until(() => this.closed, ms)
    const silent = Math.max(0, Math.round((this.closed ? this.closedAt : now()) - started))
    return { answered: await this.echo(1000) !== null, closed: this.closed, silent_ms: silent }
  }

  // → the frame that begins so, if it comes within this time, else ""
  async said(start, ms) {
    const found = () => this.frames.find(({ text }) => text.startsWith(start))
    await until(() => found() || this.closed, ms)
    return found()?.text ?? ""
  }

  close() { this.#socket?.close(NORMAL) }

  // A browser hides the status of a refused upgrade.
  #facts(error) { return { error, status: this.opened ? SWITCHING : 0, opened: this.opened, hello: this.hello } }
}
