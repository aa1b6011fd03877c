// One poll at a time: htmx sends the hidden form #poll and swaps what is let through into #inbox, from where it is taken.

export class Polls {
  #form = document.getElementById("poll"); #inbox = document.getElementById("inbox"); #request = null

  constructor() {
    const listen = (name, take) => this.#form?.addEventListener(name, (event) => {
      if (name === "htmx:config:request" ? this.#request : event.detail.ctx === this.#request?.ctx) take(event)
    })
    listen("htmx:config:request", ({ detail }) => {
      this.#request.ctx = detail.ctx
      detail.ctx.request.timeout = this.#request.within
      detail.ctx.request.redirect = "manual" // ours are none; a sign-in page elsewhere must be told from a dead server
    })
    listen("htmx:after:request", (event) => this.#gate(event))
    listen("htmx:after:swap", () => this.#takeIn())
    listen("htmx:finally:request", () => this.#end())
  }

  // accept(answer, as of asking.js) → the text to swap in, or null; take(its elements); over(), and end() when the next
  // may be asked. → what gives it up, or null where it cannot be asked
  ask(fields, within, { accept, take, over, end }) {
    const { htmx } = window
    if (!this.#form || !htmx) return null
    const request = this.#request = { within, accept, take, over, end }
    this.#form.replaceChildren(...fields.map(([name, value]) => (
      Object.assign(document.createElement("input"), { type: "hidden", name, value })
    )))
    htmx.process(this.#form)
    htmx.trigger(this.#form, "chat:poll")
    return () => { if (request === this.#request) htmx.trigger(this.#form, "htmx:abort") }
  }

  #gate(event) {
    const { ctx } = event.detail
    const { status, headers, raw } = ctx.response
    const header = (name) => headers.get(name)
    const text = this.#request.accept({ status, text: ctx.text, header, isRedirect: raw.type === "opaqueredirect" })
    if (text !== null) return ctx.text = text
    event.preventDefault()
    ctx.hx = {} // a foreign answer's HX-* headers are not obeyed either
  }

  #takeIn() {
    this.#request.take([...this.#inbox.querySelector("chat-answer")?.children ?? []])
    this.#inbox.replaceChildren()
  }

  // htmx is still busy with the form while it reports the end: that is said in a task of its own.
  #end() {
    const request = this.#request
    this.#request = null
    request.over()
    setTimeout(request.end)
  }
}
