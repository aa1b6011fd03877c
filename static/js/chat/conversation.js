// The open conversation and the list of conversations in the DOM: does what connection/feeds.js says of what the server
// sends, shows what waits in the outbox, keeps order, times and scroll. One broken element never stops the others.

import { isWhole } from "../browser/integrity.js"
import { focusComposer } from "./composer.js"
import { Items, itemOf } from "../connection/feeds.js"
import { announce } from "./announcer.js"
import { morph, morphInto } from "./morph.js"
import { Scroll } from "./scroll.js"
import { words } from "./words.js"
import { daySeparator, wordTime, wordTimes } from "./dates.js"

export class ConversationView {
  #messages = document.getElementById("messages")
  #list = document.getElementById("conversations")
  #older = document.getElementById("older")
  #items = { messages: new Items(() => this.#older?.hidden === false), list: new Items() }
  #scroll
  onGone = () => {}
  onListCut = () => {} // the list came whole, and what had been loaded beyond it went

  // placeKey: where the tab remembers what was read
  constructor(conversation, placeKey) {
    this.conversation = conversation
    this.isAltered = [this.#messages, this.#list].map(forgetAltered).includes(true)
    for (const feed of ["list", conversation]) this.know(feed)
    const log = document.getElementById("log")
    const jump = document.getElementById("jump")
    this.#scroll = log && new Scroll(log, this.#messages, jump, placeKey)
    jump?.addEventListener("click", () => { this.scrollToEnd(); focusComposer() }) // the button vanishes
    setInterval(() => wordTimes(this.#messages), 60000)
    this.#tidy()
    this.#scroll?.begin()
  }

  isAwaiting() {
    const busy = '[data-author="assistant"]:is([data-state="running"], [data-state="queued"])'
    return Boolean(this.#messages?.querySelector(busy))
  }

  // What the page came with, or loaded by itself.
  know(feed) {
    const { holder, items } = this.#shownOf(feed)
    for (const element of holder?.querySelectorAll(":scope > [data-revision]") ?? []) {
      const item = itemOf(element)
      if (!items.has(item.key)) items.know(item)
      else if (this.#find(item.key, holder) !== element) element.remove() // it was listed further up meanwhile
    }
  }

  // False: what is shown does not fit; start this feed over.
  apply(feed, element) {
    const { holder, items } = this.#shownOf(feed)
    if (!holder) return true
    const focused = document.activeElement
    const { orders, fits, isCut } = items.apply(element)
    for (const order of orders) {
      try { this.#obey(order, holder) } catch (error) { console.error(error) }
    }
    if (focused !== document.activeElement) giveFocusBack(focused)
    if (fits) holder.dataset.cursor = element.getAttribute("to")
    if (isCut && holder === this.#list) this.onListCut()
    if (holder !== this.#messages) return fits
    if (isCut && this.#older) this.#older.hidden = false // what went can be loaded again
    this.#afterChange()
    return fits
  }

  #shownOf(feed) {
    if (feed === "list") return { holder: this.#list, items: this.#items.list }
    return feed === this.conversation ? { holder: this.#messages, items: this.#items.messages } : {}
  }

  #obey(order, holder) {
    const { verb, key, element, isLast } = order
    const shown = this.#find(key, holder)
    if (verb === "remove") shown && take(shown)
    else if (verb === "append") this.#append(shown, order)
    else if (holder === this.#list) this.#placeEntry(shown, element)
    else if (isLast) this.#placeLast(shown, element)
    else this.#place(shown, element)
  }

  forget(feed) {
    const { holder, items } = this.#shownOf(feed)
    if (holder) holder.dataset.cursor = "0"
    items?.forget()
  }

  gone(feed) { if (feed === this.conversation) this.onGone(feed) }

  // By their ids: a selector would walk through every element of every message.
  #find(key, holder) {
    if (holder === this.#list) return holder.querySelector(`li[data-id="${CSS.escape(key)}"]`)
    const shown = document.getElementById(`m-${key}`)
    return holder.contains(shown) ? shown : null
  }

  #place(shown, article, isOlder = false) {
    if (!isOlder) this.#announce(shown?.dataset.state, article)
    if (!shown) this.#insert(article)
    else { // what is equal in both keeps its nodes
      morph(shown, article)
      this.#stand(shown)
    }
    this.#dress(shown ?? article)
  }

  // Where its position wants it. It is not moved where it stands there already: it may have the focus, or be pressed.
  #stand(article) {
    const [before, after] = [articleBeside(article, "previousElementSibling"), articleBeside(article, "nextElementSibling")]
    const { position } = article.dataset
    const follows = !before || (before.dataset.position && Number(before.dataset.position) < Number(position))
    if (follows && !(after?.dataset.position && Number(after.dataset.position) < Number(position))) return
    take(article)
    this.#insert(article)
  }

  // An answer that has not begun stands last, until the article of its start, or of its end, comes in its place.
  #placeLast(shown, article) {
    if (shown) morph(shown, article) // a press of Stop may be under way
    if (!shown || this.#messages.lastElementChild !== shown) this.#messages.append(shown ?? article)
  }

  // By position; what has none yet (still in the outbox) stays at the end.
  #insert(article) {
    const position = Number(article.dataset.position)
    let before = null
    for (let one = this.#messages.lastElementChild; one; one = one.previousElementSibling) {
      if (one.matches("article") && one.dataset.position && Number(one.dataset.position) < position) break
      before = one
    }
    this.#messages.insertBefore(article, before)
  }

  #append(article, { pieces, patch }) {
    if (!article) return
    const body = article.querySelector(":scope > .body")
    for (const { index, source } of pieces) morphInto(blockOf(body, index), source)
    const footer = patch.querySelector(":scope > footer")
    if (footer) {
      article.querySelector(":scope > footer")?.replaceWith(footer)
      wordTime(footer.querySelector("time[datetime]"))
    }
    const before = article.dataset.state
    article.dataset.revision = patch.getAttribute("revision")
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
    const heading = document.getElementById("title")
    Object.assign(document.querySelector("dialog:not(:modal, :popover-open) [name=title]") ?? {}, { value: title })
    if (!heading || heading.textContent === title) return
    document.title = document.title.replace(heading.textContent, () => title)
    heading.textContent = heading.title = title
  }

  // --- what waits in the outbox ---

  // why: what kept it from being sent, as the transport's outcome names it
  onOutbox(entry, what, why) {
    if (entry.conversation !== this.conversation || !this.#messages) return
    let article = document.getElementById(`m-${entry.id}`)
    if (what === "removed") {
      if (!article || article.dataset.id) return
      this.#items.messages.drop(entry.id)
      return take(article)
    }
    if (what === "sent") return this.#markSent(article, entry.ack)
    if (article?.dataset.id) return
    article ??= this.#addPending(entry)
    if (!article) return
    const isKept = entry.storage === "stored"
    article.dataset.state = entry.failed ? "failed" : isKept ? "sending" : "unstored"
    article.querySelector(".failure")?.remove()
    const state = article.querySelector(".state")
    const word = entry.storage === "storing" ? "" : !isKept ? "unkept" : what === "sending" ? "sending" : why === "server-storage" ? "unwritten" : "queued"
    if (state) state.textContent = entry.failed ? "" : words(word)
    if (entry.failed) article.append(failureRow(entry))
    if (what === "failed") announce(article.querySelector("[data-slot=reason]")?.textContent ?? "")
    const isWrittenHere = what === "added" && entry.storage === "storing" // else an earlier page or another tab left it
    isWrittenHere ? this.scrollToEnd() : this.#afterChange()
  }

  #addPending(entry) {
    const article = document.getElementById("message-pending")?.content.firstElementChild?.cloneNode(true)
    if (!article) return null
    article.id = `m-${entry.id}`
    article.dataset.clientId = entry.id
    article.querySelector(".body").textContent = entry.body
    article.querySelector("time")?.setAttribute("datetime", new Date(entry.at).toISOString())
    this.#items.messages.expect(entry.id)
    this.#messages.insertBefore(article, this.#messages.querySelector(":scope > .waiting"))
    this.#dress(article)
    return article
  }

  // The acknowledgement gives it its place; the feed brings the article itself.
  #markSent(article, ack) {
    if (!article || article.dataset.id || !ack) return
    Object.assign(article.dataset, { id: ack.id, position: ack.position, revision: "0", state: "sent" })
    this.#items.messages.know(itemOf(article))
    article.querySelector(".failure")?.remove()
    const state = article.querySelector(".state")
    if (state) state.textContent = words("sent")
    this.#stand(article)
    this.#dress(article)
    this.#afterChange()
  }

  // --- times, days, scroll, announcements ---

  #afterChange() { this.#scroll?.onChange() }

  #tidy() {
    for (const article of this.#messages?.querySelectorAll("article:not(.waiting)") ?? []) this.#dress(article)
  }

  // Word its time, and set or take away the day's separator before it and before the next one.
  #dress(article) {
    wordTime(article.querySelector("time[datetime]"))
    const after = article.nextElementSibling
    separate(article)
    separate(after?.matches(".day") ? after.nextElementSibling : after)
  }

  // Older messages go in front without moving what is read.
  prepend(articles) {
    this.#scroll.keeping(() => {
      for (const article of articles) {
        try {
          const order = this.#items.messages.take(article, true)
          if (order) this.#place(this.#find(order.key, this.#messages), article, true)
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

// The block of an answer that has this index, made where there is none.
function blockOf(body, index) {
  const known = body.querySelector(`:scope > .block[data-index="${index}"]`)
  if (known) {
    delete known.dataset.source // it is older than what comes now
    return known
  }
  const block = Object.assign(document.createElement("div"), { className: "block", dir: "auto" })
  block.dataset.index = index
  const next = [...body.querySelectorAll(":scope > .block")].find((one) => Number(one.dataset.index) > index)
  body.insertBefore(block, next ?? null)
  return block
}

// What was moved or taken away has lost the focus. A button that came in its place does another thing, so it gets none.
function giveFocusBack(element) {
  if (document.activeElement !== document.body) return
  if (element.isConnected) element.focus({ preventScroll: true })
  else focusComposer()
}

// direction: the name of the property that leads to it
function articleBeside(article, direction) {
  let one = article[direction]
  while (one && !one.matches("article")) one = one[direction]
  return one
}

const dayOf = (article) => new Date(article.querySelector("time")?.dateTime ?? "").toDateString()

// Out of the log, with the separator that was its own.
function take(article) {
  const next = article.nextElementSibling
  if (article.previousElementSibling?.matches(".day")) article.previousElementSibling.remove()
  article.remove()
  separate(next)
}

// A page that was rewritten on the way: what is wrong in it comes again. → whether anything is
function forgetAltered(container) {
  const altered = [...container?.children ?? []].filter((child) => !isWhole(child))
  for (const { dataset } of altered) {
    const since = Number(dataset.position ?? 1) - 1 // after which it comes whole: a list from its beginning
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

function failureRow(entry) {
  const row = document.getElementById("message-failed")?.content.firstElementChild?.cloneNode(true)
  if (!row) return ""
  const slot = row.querySelector("[data-slot=reason]")
  const text = words(`failed-${entry.failed.code}`) || entry.failed.words || words("failed-refused")
  if (slot && text) slot.textContent = text
  return row
}
