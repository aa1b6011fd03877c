// "Run test" on the page /connection, and the history of the connection.

import { CheckView } from "./view.js"
import { words as commonWords } from "../chat/words.js"
import { section, setSlot } from "./testing.js"

// The history of the connection: served with the page; new states are prepended.
class History {
  #list = document.getElementById("connection-history")
  #format = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "medium" })
  #state = null

  constructor() {
    for (const time of document.querySelectorAll("#connection-history time, .drill time")) this.#print(time)
    for (const row of this.#list.querySelectorAll("[data-reason]")) this.#explain(row)
    document.addEventListener("connection:changed", ({ detail }) => this.#onChange(detail))
  }

  #onChange({ status, reason }) {
    if (status === this.#state || status === "connecting") return
    this.#state = status
    const chip = document.getElementById(`status-${status}`)?.content.querySelector(".chip")?.cloneNode(true)
    if (!chip) return
    chip.querySelector(".figure")?.remove()
    chip.removeAttribute("href") // it links to this page
    chip.removeAttribute("title")
    const row = document.createElement("li")
    row.dataset.reason = reason ?? ""
    const time = Object.assign(document.createElement("time"), { dateTime: new Date().toISOString() })
    const why = Object.assign(document.createElement("span"), { className: "why" })
    why.dataset.slot = "why"
    row.append(time, chip, why)
    this.#print(time)
    this.#explain(row)
    this.#list.querySelector(".quiet")?.remove()
    this.#list.prepend(row)
  }

  #print(time) { time.textContent = this.#format.format(new Date(time.dateTime)) }

  #explain(row) { setSlot(row, "why", commonWords(`reason-${row.dataset.reason}`)) }
}

if (section) {
  new CheckView()
  new History()
}

section.dataset.alive = ""
