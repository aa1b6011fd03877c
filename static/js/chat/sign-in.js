// The sign-in over the page, once the session has ended: what is written, waits or is selected stays. A session that was
// ended on purpose (signed out elsewhere, or revoked) takes what the page showed with it.

import { ENDED, isConnected } from "../connection/states.js"
import { words } from "./words.js"

const SHOWN = "#messages, #older, #conversations, #title, .history, #kept"

export class SignIn {
  #connection; #session; #draft; #dialog = null; #isEmptied = false

  // draft(): the unsent text
  constructor(connection, session, draft) {
    this.#connection = connection
    this.#session = session
    this.#draft = draft
    document.addEventListener("connection:changed", ({ detail }) => this.#onChange(detail))
  }

  #onChange({ status, reason }) {
    const hasEnded = status === "disconnected" && ENDED.includes(reason)
    if (hasEnded && reason !== "session-expired") this.#empty(reason)
    if (hasEnded && !this.#dialog) queueMicrotask(() => this.#open(reason)) // after the composer has noted its focus
    if (isConnected(status)) this.#goOn() // somebody signed in, here or in another tab
  }

  #empty(reason) {
    if (this.#isEmptied) return
    this.#isEmptied = true
    for (const part of document.querySelectorAll(SHOWN)) part.replaceChildren()
    for (const part of document.querySelectorAll("#messages, dialog")) part.hidden = true // what comes late is not seen, either
    document.getElementById("title")?.removeAttribute("title")
    document.title = words(`reason-${reason}`)
    const text = document.querySelector("#composer textarea")
    if (text && reason === "session-revoked") text.style.visibility = "hidden" // its draft stays
  }

  #open(reason) {
    if (this.#dialog) return
    const template = document.getElementById("sign-in")
    this.#dialog = template.content.firstElementChild.cloneNode(true)
    const { email } = this.#dialog.querySelector("form")
    email.value = document.querySelector("form.person")?.dataset.email ?? ""
    this.#dialog.querySelector("h2").textContent = words(`reason-${reason}`)
    const draft = this.#isEmptied ? "" : this.#draft().trim()
    this.#dialog.querySelector("[data-slot=draft]").textContent = draft
    this.#dialog.querySelector(".draft").hidden = !draft
    const later = this.#dialog.querySelector("[data-action=later]")
    later.hidden = this.#isEmptied
    later.addEventListener("click", () => this.#dialog.close())
    this.#dialog.addEventListener("cancel", (event) => { if (this.#isEmptied) event.preventDefault() })
    this.#dialog.querySelector("form").addEventListener("submit", (event) => this.#submit(event))
    document.body.append(this.#dialog)
    this.#dialog.showModal()
    this.#dialog.querySelector(email.value ? "[name=password]" : "[name=email]").focus()
  }

  #goOn() {
    if (this.#isEmptied) return location.reload()
    if (!this.#dialog) return
    this.#dialog.close()
    this.#dialog.remove()
    this.#dialog = null
  }

  async #submit(event) {
    event.preventDefault()
    const form = event.target
    const button = form.querySelector("[type=submit]")
    const problem = form.querySelector("[data-slot=problem]")
    button.disabled = true
    const said = await this.#session.signIn(form.email.value, form.password.value).catch(() => words("not-done"))
    if (said === null) return
    button.disabled = false
    problem.textContent = said
    problem.hidden = !said
    if (said) return form.password.select()
    this.#goOn() // first: the composer takes its focus back only where nobody has it
    this.#connection.retry()
  }
}
