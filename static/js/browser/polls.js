// One poll at a time: htmx sends the hidden form #poll and swaps accepted answers into #inbox.

import { within } from "../connection/feeds.js"

export class Polls {
  #form = document.getElementById("poll"); #inbox = document.getElementById("inbox"); #request = null

  constructor() {
    const listen = (name, act) => this.#form?.addEventListener(name, (event) => {
      if (name === "htmx:config:request" ? this.#request : event.detail.ctx === this.#request?.ctx) act(event)
    })
    listen("htmx:config:request", ({ detail }) => {
      this.#request.ctx = detail.ctx
      detail.ctx.request.timeout = this.#request.within
      detail.ctx.request.redirect = "manual" // followed, a foreign sign-in page would look like a dead server
    })
    listen("htmx:after:request", (event) => this.#accept(event))
    listen("htmx:after:swap", () => this.#deliver())
    listen("htmx:finally:request", () => this.#end())
  }

  // accept(answer, see asking.js) → the text to swap in, or null; take(its elements); over(): ended; end(): the next
  // poll may start. → a function that aborts the poll, or null if it cannot be sent
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

  #accept(event) {
    const { ctx } = event.detail
    const { status, headers, raw } = ctx.response
    const header = (name) => headers.get(name)
    const text = this.#request.accept({ status, text: ctx.text, header, isRedirect: raw.type === "opaqueredirect" })
    if (text !== null) return ctx.text = text
    event.preventDefault()
    ctx.hx = {} // ignore HX-* headers of a foreign answer
  }

  #deliver() {
    const answer = this.#inbox.querySelector("chat-answer")
    this.#request.take(answer ? within(answer) : [])
    this.#inbox.replaceChildren()
  }

  // In a later task: htmx is still busy with the form during this event.
  #end() {
    const request = this.#request
    this.#request = null
    request.over()
    setTimeout(request.end)
  }
}
