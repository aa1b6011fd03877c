// The buttons of a connection test, and its verdict.

import { copy } from "../chat/clipboard.js"
import { Check, section, word } from "./testing.js"

export class CheckView {
  #box = document.getElementById("check-verdict"); #letter = ""; #isRunning = false; #before; #after

  // before() → false where there is nothing to test; after(found); both only on the page of a network test
  constructor({ before = null, after = () => {} } = {}) {
    this.#before = before
    this.#after = after
    section.addEventListener("click", ({ target }) => {
      const button = target.closest("[data-check]")
      if (button?.dataset.check === "copy") copy(button, this.#letter, word("copied"))
      else if (button) this.#run(1000 * Number(button.dataset.check === "long" ? section.dataset.longS : section.dataset.idleS))
    })
  }

  async #run(idleMs) {
    if (this.#isRunning) return
    this.#setRunning(true)
    this.#box.hidden = true
    for (const row of section.querySelectorAll("[data-probe]")) {
      row.dataset.level = "waiting"
      for (const slot of row.querySelectorAll("[data-slot]")) slot.textContent = ""
    }
    try {
      if (!this.#before || await this.#before()) await this.#test(new Check(Boolean(this.#before)), idleMs)
    } catch (error) { console.error(error) }
    this.#setRunning(false)
  }

  async #test(check, idleMs) {
    const found = await check.run(idleMs)
    this.#letter = check.letter(found)
    this.#draw(found)
    this.#after(found)
    section.querySelector("[data-check=run]").textContent = word("again")
  }

  #setRunning(isRunning) {
    this.#isRunning = isRunning
    section.setAttribute("aria-busy", isRunning)
    // Not disabled: that would lose the focus.
    for (const button of section.querySelectorAll("[data-check=run], [data-check=long]")) button.setAttribute("aria-disabled", isRunning)
  }

  #draw(found) {
    const slot = (name) => this.#box.querySelector(`[data-slot=${name}]`)
    Object.assign(this.#box.dataset, { verdict: found.name, worth: found.worth })
    slot("verdict").textContent = word(`verdicts-${found.name}`)
    slot("fixes").replaceChildren(...found.fixes.map((fix) => (
      Object.assign(document.createElement("li"), { textContent: word(`fixes-${fix}`) })
    )))
    slot("settings").replaceChildren(...found.settings.map((part) => part.cloneNode(true)))
    this.#box.querySelector("[data-part=help]").hidden = found.fixes.length === 0
    this.#box.hidden = false
  }
}
