// What a test of the connection does on the network: one GET, read as it comes, and one WebSocket. No judgement, no DOM.

const OPEN = 8000
const HELLO = 4000 // from the 101 to the first frame, and for an echo
const CUT_AFTER = 900 // a request that fails later than that had reached something
const END = "</chat-test>"

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms) })

async function until(condition, ms) {
  const end = performance.now() + ms
  while (!condition() && performance.now() < end) await pause(15)
  return condition()
}

// One GET, read as it comes. A browser says little of why a request failed: by the time it took, and whether the
// server was ever reached, a cut is told from a server that is not there.
// Facts as verdicts.js judges them; `isReached`: whether the server answered before.
export async function ask(url, within, mark, isReached) {
  const facts = { error: null, status: 0, redirected: false, text: "", at: [], headers: "" }
  const started = performance.now()
  const since = () => Math.round(performance.now() - started)
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
    for (let part; reader && !(part = await reader.read()).done;) {
      facts.at.push(since())
      facts.text += decoder.decode(part.value, { stream: true })
    }
  } catch {
    const wasReached = isReached || facts.status || since() > CUT_AFTER
    facts.error = abort.signal.aborted ? "hung" : wasReached ? "cut" : "unreachable"
  }
  clearTimeout(timer)
  facts.marked = facts.text.trimStart().startsWith(mark)
  facts.complete = facts.text.trimEnd().endsWith(END)
  return { ...facts, ms: since() }
}

// One WebSocket; `frames` keeps what came, times are performance.now().
export class Line {
  #socket; opened = false; closed = false; closedAt = 0; frames = []

  constructor(url) {
    try { this.#socket = new WebSocket(url) } catch { this.closed = true; return }
    this.#socket.onopen = () => { this.opened = true }
    this.#socket.onmessage = ({ data }) => this.frames.push({ text: String(data), at: performance.now() })
    this.#socket.onclose = () => { this.closed = true; this.closedAt = performance.now() }
  }

  get hello() { return this.frames.some(({ text }) => text.startsWith("<chat-hello")) }

  async open() {
    await until(() => this.opened || this.closed, OPEN)
    if (!this.opened) return this.#facts(this.closed ? null : "hung")
    await until(() => this.hello || this.closed, HELLO)
    return this.#facts(this.hello ? null : this.closed ? "cut" : "hung")
  }

  // The round trip in ms, or null where no answer came.
  async echo(n) {
    const started = performance.now()
    const answer = () => this.frames.find(({ text }) => text.includes(`<chat-echo n="${n}"`))
    if (!this.closed) this.#socket.send(JSON.stringify({ type: "echo", n }))
    await until(() => answer() || this.closed, HELLO)
    return answer() ? Math.round(answer().at - started) : null
  }

  // Says nothing for so long (the browser answers the server's pings), then one echo.
  async idle(ms) {
    const started = performance.now()
    await until(() => this.closed, ms)
    const silent = Math.max(0, Math.round((this.closed ? this.closedAt : performance.now()) - started))
    return { answered: await this.echo(1000) !== null, closed: this.closed, silent_ms: silent }
  }

  close() { this.#socket?.close(1000) }

  // A browser does not tell with which status an upgrade was refused.
  #facts(error) { return { error, status: this.opened ? 101 : 0, opened: this.opened, hello: this.hello } }
}
