// The open conversation and the list of conversations in the DOM: applies the orders of connection/feeds.js, shows the
// outbox, and keeps order, times and scroll position. One broken element never stops the others.

import { isWhole } from "../browser/integrity.js"
import { focusComposer } from "./composer.js"
import { Items, itemOf } from "../connection/feeds.js"
import { isConnected } from "../connection/states.js"
import { announce } from "./announcer.js"
import { morph, morphInto } from "./morph.js"
import { Scroll } from "./scroll.js"
import { words } from "./words.js"
import { daySeparator, wordTime, wordTimes } from "./dates.js"

export class ConversationView {
  #messages = document.getElementById("messages")
  #list = document.getElementById("conversations")
  #older = document.getElementById("older")
  #items; #person
  #scroll
  onGone = () => {}
  onListRemoved = () => {} // (conversation): it was deleted, or the person is no longer in it
  onListCut = () => {} // the list came whole, and entries loaded beyond it were removed

  // person: the reader's UUID; placeKey: of the reading position in sessionStorage
  constructor(conversation, person, placeKey) {
    this.conversation = conversation
    this.#person = person
    this.#items = { messages: new Items(person, () => this.#older?.hidden === false), list: new Items(person) }
    this.isAltered = [this.#messages, this.#list].map(forgetAltered).includes(true)
    for (const feed of ["list", conversation]) this.know(feed)
    const log = document.getElementById("log")
    const jump = document.getElementById("jump")
    this.#scroll = log && new Scroll(log, this.#messages, jump, placeKey)
    jump?.addEventListener("click", () => { this.scrollToEnd(); focusComposer() }) // the button vanishes
    setInterval(() => wordTimes(this.#messages), 60000)
    for (const article of this.#messages?.querySelectorAll("article:not(.waiting)") ?? []) this.#format(article)
    this.#scroll?.begin()
  }

  isAwaiting() {
    const busy = '[data-author="assistant"]:is([data-state="running"], [data-state="queued"])'
    return Boolean(this.#messages?.querySelector(busy))
  }

  // Registers elements that were served with the page, or loaded by htmx.
  know(feed) {
    const { holder, items } = this.#partsOf(feed)
    for (const element of holder?.querySelectorAll(":scope > [data-revision]") ?? []) {
      const item = itemOf(element)
      if (holder === this.#messages) this.#claim(element, item.key)
      if (!items.has(item.key)) items.know(item)
      else if (this.#find(item.key, holder) !== element) element.remove() // a duplicate: it moved up meanwhile
    }
  }

  // → false if it does not fit the elements shown: start this feed over
  apply(feed, element) {
    const { holder, items } = this.#partsOf(feed)
    if (!holder) return true
    const focused = document.activeElement
    const { orders, fits, isCut } = items.apply(element)
    for (const order of orders) {
      try { this.#execute(order, holder) } catch (error) { console.error(error) }
    }
    if (focused !== document.activeElement) restoreFocus(focused)
    if (fits) holder.dataset.cursor = element.getAttribute("to")
    if (isCut && holder === this.#list) this.onListCut()
    if (holder !== this.#messages) return fits
    if (isCut && this.#older) this.#older.hidden = false // removed messages can be loaded again
    this.#onChange()
    return fits
  }

  #partsOf(feed) {
    if (feed === "list") return { holder: this.#list, items: this.#items.list }
    return feed === this.conversation ? { holder: this.#messages, items: this.#items.messages } : {}
  }

  #execute(order, holder) {
    const { verb, key, was, element, isLast, isGone } = order
    const shown = this.#find(was ?? key, holder)
    if (element && holder === this.#messages) this.#claim(element, key)
    if (isGone && holder === this.#list) this.onListRemoved(key)
    if (verb === "remove") shown && remove(shown)
    else if (verb === "append") this.#append(shown, order)
    else if (holder === this.#list) this.#placeEntry(shown, element)
    else if (isLast) this.#placeLast(shown, element)
    else this.#place(shown, element)
  }

  forget(feed) {
    const { holder, items } = this.#partsOf(feed)
    if (holder) holder.dataset.cursor = "0"
    items?.forget()
  }

  gone(feed) { if (feed === this.conversation) this.onGone(feed) }

  // Frames are the same for all readers: what is only this one's is added here.
  #claim(article, key) {
    article.id = `m-${key}`
    if (article.dataset.authorId === this.#person) article.dataset.mine = ""
  }

  // By id: a selector would walk through every element of every message.
  #find(key, holder) {
    if (holder === this.#list) return holder.querySelector(`li[data-id="${CSS.escape(key)}"]`)
    const shown = document.getElementById(`m-${key}`)
    return holder.contains(shown) ? shown : null
  }

  #place(shown, article, isOlder = false) {
    if (!isOlder) this.#announce(shown?.dataset.state, article)
    if (!shown) this.#insert(article)
    else { // equal nodes stay
      morph(shown, article)
      this.#move(shown)
    }
    this.#format(shown ?? article)
  }

  // Moves an article to its position. Not if it is there already: it may have the focus, or a pressed button.
  #move(article) {
    const [before, after] = [sibling(article, "previousElementSibling"), sibling(article, "nextElementSibling")]
    const { position } = article.dataset
    const follows = !before || (before.dataset.position && Number(before.dataset.position) < Number(position))
    if (follows && !(after?.dataset.position && Number(after.dataset.position) < Number(position))) return
    remove(article)
    this.#insert(article)
  }

  // An answer that has not begun stays last, until the article of its start or end replaces it.
  #placeLast(shown, article) {
    if (shown) morph(shown, article) // Stop may be pressed right now
    if (!shown || this.#messages.lastElementChild !== shown) this.#messages.append(shown ?? article)
  }

  // By position; articles without one (still in the outbox) stay at the end.
  #insert(article) {
    const position = Number(article.dataset.position)
    let before = null
    for (let one = this.#messages.lastElementChild; one; one = one.previousElementSibling) {
      if (one.matches("article") && one.dataset.position && Number(one.dataset.position) < position) break
      before = one
    }
    this.#messages.insertBefore(article, before)
  }

  #append(article, { pieces, revision, patch }) {
    if (!article) return
    const body = article.querySelector(":scope > .body")
    for (const { index, source } of pieces) morphInto(blockOf(body, index), source)
    const footer = patch.querySelector(":scope > footer")
    if (footer) {
      article.querySelector(":scope > footer")?.replaceWith(footer)
      wordTime(footer.querySelector("time[datetime]"))
    }
    const before = article.dataset.state
    article.dataset.revision = revision
    article.dataset.state = patch.getAttribute("state") ?? before
    this.#announce(before, article)
  }

  #placeEntry(shown, item) {
    if (item.dataset.id === this.conversation) this.#onOwnEntry(item)
    const hadFocus = shown?.contains(document.activeElement)
    shown?.remove()
    const older = [...this.#list.children].find((one) => (one.dataset.updated ?? "") < item.dataset.updated)
    this.#list.insertBefore(item, older ?? null)
    if (hadFocus) item.querySelector("a")?.focus()
  }

  #onOwnEntry(item) {
    item.querySelector("a")?.setAttribute("aria-current", "page")
    const title = item.textContent.trim()
    const { people, answers = "always" } = item.dataset
    const link = document.getElementById("people")
    if (link) link.hidden = !people
    if (people && link) link.firstElementChild.textContent = people
    const field = document.getElementById("body")
    if (field && document.body.dataset.answers !== answers) {
      [field.placeholder, field.dataset.other] = [field.dataset.other, field.placeholder]
    }
    document.body.dataset.answers = answers
    const heading = document.getElementById("title")
    Object.assign(document.querySelector("dialog:not(:modal, :popover-open) [name=title]") ?? {}, { value: title })
    if (!heading || heading.textContent === title) return
    document.title = document.title.replace(heading.textContent, () => title)
    heading.textContent = heading.title = title
  }

  // --- the outbox ---

  // reason: of a failed delivery, from the transport's outcome
  onOutbox(entry, change, reason, advice) {
    if (entry.conversation !== this.conversation || !this.#messages) return
    let article = document.getElementById(`m-${this.#items.messages.keyOf(entry.id)}`)
    if (change === "removed") {
      if (!article || article.dataset.id) return
      this.#items.messages.drop(entry.id)
      return remove(article)
    }
    if (change === "sent") return this.#markSent(article, entry.ack)
    if (article?.dataset.id) return
    article ??= this.#addPending(entry)
    if (!article) return
    const isKept = entry.storage === "stored"
    article.dataset.state = entry.failed ? "failed" : isKept ? "sending" : "unstored"
    article.querySelector(".failure")?.remove()
    const state = article.querySelector(".state")
    const word = entry.storage === "storing" ? "" : !isKept ? "unkept" : change === "sending" ? "sending" : reason === "server-storage" ? "unwritten" : isBehind(article) ? "behind" : "queued"
    if (state) state.textContent = entry.failed ? "" : words(word)
    if (state && reason === "rate-limited" && advice > 0) countDown(state, advice)
    if (entry.failed) article.append(failureRow(entry))
    if (change === "failed") announce(article.querySelector("[data-slot=reason]")?.textContent ?? "")
    const isWrittenHere = change === "added" && entry.storage === "storing" // else from an earlier page or another tab
    isWrittenHere ? this.scrollToEnd() : this.#onChange()
  }

  #addPending(entry) {
    const article = document.getElementById("message-pending")?.content.firstElementChild?.cloneNode(true)
    if (!article) return null
    Object.assign(article.dataset, { clientId: entry.id, authorId: this.#person })
    this.#claim(article, entry.id)
    article.querySelector(".body").textContent = entry.body
    article.querySelector("time")?.setAttribute("datetime", new Date(entry.at).toISOString())
    this.#items.messages.expect(entry.id)
    this.#messages.insertBefore(article, this.#messages.querySelector(":scope > .waiting"))
    this.#format(article)
    return article
  }

  // The acknowledgement has the position; the feed will bring the article.
  #markSent(article, ack) {
    if (!article || article.dataset.id || !ack) return
    Object.assign(article.dataset, { id: ack.id, position: ack.position, revision: "0", state: "sent" })
    this.#items.messages.know(itemOf(article))
    this.#claim(article, ack.id)
    article.querySelector(".failure")?.remove()
    const state = article.querySelector(".state")
    if (state) state.textContent = words("sent")
    this.#move(article)
    this.#format(article)
    this.#onChange()
  }

  // --- times, days, scroll, announcements ---

  #onChange() { this.#scroll?.onChange() }

  // Formats its time, and adds or removes the day separators before and after it.
  #format(article) {
    wordTime(article.querySelector("time[datetime]"))
    const after = article.nextElementSibling
    separate(article)
    separate(after?.matches(".day") ? after.nextElementSibling : after)
  }

  // Adds older messages at the top; the reader stays in place.
  prepend(articles) {
    this.#scroll.keeping(() => {
      for (const article of articles) {
        try {
          const order = this.#items.messages.take(article, true)
          if (!order) continue
          this.#claim(article, order.key)
          this.#place(this.#find(order.was ?? order.key, this.#messages), article, true)
        } catch (error) { console.error(error) }
      }
    })
  }

  get oldest() {
    return Number(this.#messages?.querySelector("article[data-position]:not([data-position=''])")?.dataset.position) || 0
  }

  scrollToEnd() { this.#scroll?.toEnd() }

  #announce(before, article) {
    const { author, state } = article.dataset
    if (author !== "assistant" || before === state) return
    const text = words(state === "running" ? "answer-started" : `answer-${state}`)
    if (text) announce(text)
  }
}

// The block of an answer with this index; created if missing.
function blockOf(body, index) {
  const known = body.querySelector(`:scope > .block[data-index="${index}"]`)
  if (known) {
    delete known.dataset.source // it is outdated now
    return known
  }
  const block = Object.assign(document.createElement("div"), { className: "block", dir: "auto" })
  block.dataset.index = index
  const next = [...body.querySelectorAll(":scope > .block")].find((one) => Number(one.dataset.index) > index)
  body.insertBefore(block, next ?? null)
  return block
}

// A moved or removed element has lost the focus. A button in its place gets none: its action differs.
function restoreFocus(element) {
  if (document.activeElement !== document.body) return
  if (element.isConnected) element.focus({ preventScroll: true })
  else focusComposer()
}

// direction: "previousElementSibling" or "nextElementSibling"
function sibling(article, direction) {
  let one = article[direction]
  while (one && !one.matches("article")) one = one[direction]
  return one
}

const dayOf = (article) => new Date(article.querySelector("time")?.dateTime ?? "").toDateString()

// Removes an article, with the separator before it; a new one is added if still needed.
function remove(article) {
  const next = article.nextElementSibling
  if (article.previousElementSibling?.matches(".day")) article.previousElementSibling.remove()
  article.remove()
  separate(next)
}

// Makes the server resend elements that were rewritten on the way. → true if there are any
function forgetAltered(container) {
  const altered = [...container?.children ?? []].filter((child) => !isWhole(child))
  for (const { dataset } of altered) {
    const since = Number(dataset.position ?? 1) - 1 // resend from there; a list has no positions: from its start
    container.dataset.cursor = Math.min(container.dataset.cursor, since)
    dataset.revision = "-1"
  }
  return altered.length > 0
}

function separate(article) {
  if (!article?.matches("article:not(.waiting)")) return
  const before = article.previousElementSibling
  const separator = before?.matches(".day") ? before : null
  const previous = separator ? separator.previousElementSibling : before
  const isNewDay = !previous || dayOf(previous) !== dayOf(article)
  if (!isNewDay) separator?.remove()
  else if (!separator) article.before(daySeparator(article.querySelector("time")?.dateTime))
}

// True if it waits for an unsent message before it, and not for a connection.
function isBehind(article) {
  const before = sibling(article, "previousElementSibling")
  return isConnected(document.body.dataset.connection) && before?.dataset.state === "sending" && !before.dataset.id
}

function failureRow(entry) {
  const row = document.getElementById("message-failed")?.content.firstElementChild?.cloneNode(true)
  if (!row) return ""
  const slot = row.querySelector("[data-slot=reason]")
  const text = words(`failed-${entry.failed.code}`) || entry.failed.words || words("failed-refused")
  if (slot && text) slot.textContent = text
  return row
}

// Until something else is said there.
function countDown(state, ms) {
  const end = performance.now() + ms
  let said = null
  const draw = () => {
    const left = Math.ceil((end - performance.now()) / 1000)
    if (!state.isConnected || left < 1 || said !== null && state.textContent !== said) return
    state.textContent = said = words("paused", left)
    setTimeout(draw, 1000)
  }
  draw()
}
