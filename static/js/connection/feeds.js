// Subscribed feeds with their cursors, and the items shown, as data: decides which changes are newer, if a patch fits
// and when a full resend is needed, and gives orders to the view. Elements are read only through localName,
// getAttribute, hasAttribute, children and textContent, which a DOM and any parser can provide.

const RESYNC = 1000 // ms between resyncs; the first is immediate

const number = (element, name) => Number(element.getAttribute(name))

// A frame or a poll's answer with the whole name of its feed, which is short where it is only what an answer grew by.
export const named = (text, feeds) => text.replace(/^(<chat-\w+ at="[\d,]+" feed=")(\w+)/, (all, start, short) => {
  const [feed, other] = feeds.filter((name) => name.startsWith(short))
  return feed && !other ? start + feed : all
})

// The elements in a poll's answer: itself where it is only what an answer grew by.
export const within = (answer) => answer.hasAttribute("at") ? [answer] : [...answer.children]

// The subscribed feeds, each with its cursor.
export class Feeds {
  #world; #ask; #cursors = new Map(); #resyncs = new Set(); #resyncedAt = -Infinity
  view = null // {apply(feed, element) → false to start that feed over, forget(feed), gone(feed), isAwaiting()}

  // ask(feed, cursor): subscribe to the changes after the cursor
  constructor(world, ask) {
    this.#world = world
    this.#ask = ask
  }

  get cursors() { return Object.fromEntries(this.#cursors) }

  has(feed) { return this.#cursors.has(feed) }

  follow(feed, cursor) { this.#cursors.set(feed, cursor) }

  unfollow(feed) { return this.#cursors.delete(feed) }

  clear() { this.#cursors.clear() }

  // element: a "chat-feed". isWhole(element) → false if it was altered on the way; isOthers: another tab requested it,
  // so a reset is a gap here if the cursor is above 0.
  // → "applied", "known" (also a late reset, older than the items shown), "altered", "again" (a resync is under way)
  take(feed, element, { isWhole = () => true, isOthers = false } = {}) {
    const cursor = this.#cursors.get(feed)
    const to = number(element, "to")
    if (cursor === undefined || to <= cursor) return "known"
    const from = element.hasAttribute("from") ? number(element, "from") : to - 1
    const isGap = element.hasAttribute("reset") ? isOthers && cursor > 0 : from > cursor
    if (!isGap && !isWhole(element)) return "altered"
    const fits = isGap || this.view?.apply(feed, element) !== false
    if (!fits) this.forget(feed)
    if (isGap || !fits) {
      this.resync(feed)
      return "again"
    }
    this.#cursors.set(feed, to)
    noteMark(this.#world.page, element)
    return "applied"
  }

  // Subscribes again from the cursor.
  resync(feed) {
    if (this.#resyncs.has(feed)) return
    const wait = this.#world.now() - this.#resyncedAt > RESYNC ? 0 : RESYNC
    this.#resyncedAt = this.#world.now() + wait
    this.#resyncs.add(feed)
    this.#world.later(() => {
      this.#resyncs.delete(feed)
      if (this.has(feed)) this.#ask(feed, this.#cursors.get(feed))
    }, wait)
  }

  // Starts over: the items shown are no longer a valid base.
  forget(feed) {
    if (!this.has(feed)) return
    this.#cursors.set(feed, 0)
    this.view?.forget(feed)
  }

  gone(feed) { if (this.#cursors.delete(feed)) this.view?.gone(feed) }

  // Another epoch is another database.
  adoptEpoch(epoch) {
    const { page } = this.#world
    if (!epoch || epoch === page.epoch) return
    page.epoch = epoch
    for (const feed of this.#cursors.keys()) this.forget(feed)
  }

  // The server restored an older copy of its database: items shown may be newer than its history.
  adoptHistory(element) {
    if (!element.hasAttribute("mark")) return
    this.#world.page.mark = element.getAttribute("mark")
    if (element.getAttribute("reason") === "history") for (const feed of this.#cursors.keys()) this.forget(feed)
  }
}

// The mark (history.change) up to which this page is complete. It only grows within one history.
function noteMark(page, element) {
  const [history, change] = (element.getAttribute("mark") ?? "").split(".")
  if (!history) return
  const [own, shown] = (page.mark ?? "").split(".")
  if (history !== own || Number(change) > Number(shown)) page.mark = `${history}.${change}`
}

// The items shown of one feed. `apply` and `take` return orders to the view, {verb, key, …}, to be executed in turn:
//   insert, replace: element (an article, an entry of the list); isLast: an answer that has not begun; was: the key of
//     the item that it replaces, an unsent message or a waiting answer, if that is another
//   append: pieces [{index, source: of the whole block}], revision, patch (its element)
//   remove: isGone: it was taken away by name, not by a reset
export class Items {
  #known = new Map(); #keys = new Map() // key → item; position → key
  #sent = new Map() // client id → key: of the person's own messages and of answers; other people choose theirs freely
  #person; #hasOlder

  // person: the reader's UUID; hasOlder() → true if older items are not loaded yet
  constructor(person, hasOlder = () => false) {
    this.#person = person
    this.#hasOlder = hasOlder
  }

  // Registers an item served with the page, or an acknowledged message.
  know(item) {
    if (this.#isTrusted(item)) {
      const was = this.#sent.get(item.clientId)
      if (was !== item.key) this.#known.delete(was)
      this.#sent.set(item.clientId, item.key)
    }
    this.#known.set(item.key, item)
    if (item.position) this.#keys.set(item.position, item.key)
  }

  // The key of the person's own message with this client id.
  keyOf(clientId) { return this.#sent.get(clientId) ?? clientId }

  #isTrusted({ author, clientId }) { return Boolean(clientId) && (author === "" || author === this.#person) }

  has(key) { return this.#known.has(key) }

  // Registers an unsent message.
  expect(key) {
    this.know({ key, id: null, clientId: key, author: this.#person, position: 0, revision: -1, sources: new Map() })
  }

  drop(key) { if (this.has(key)) this.#remove(key) }

  forget() { for (const item of this.#known.values()) item.revision = -1 }

  // element: a "chat-feed". → {orders, fits: false if the feed must start over, isCut: true if a reset removed items}
  apply(element) {
    const children = within(element)
    const isReset = element.hasAttribute("reset") // then it replaces all items
    const orders = isReset ? this.#keepOnly(children) : []
    const isCut = orders.length > 0
    let fits = true
    for (const child of children) {
      const found = this.take(child, isReset)
      if (found) orders.push(found)
      else if (found === null) fits = false
    }
    return { orders, fits, isCut }
  }

  // child: an article, entry or patch; isOlder: loaded by scrolling up.
  // → an order, undefined (known already), or null (does not fit)
  take(child, isOlder = false) {
    if (child.localName === "chat-patch") {
      return this.#patch(child, number(child, "position"), number(child, "revision"), [...child.children].filter(isBlock).map(
        (block) => [...placeOf(block), block],
      ))
    }
    if (child.hasAttribute("at")) {
      const [position, ...place] = placeOf(child)
      return this.#patch(child, position, number(child, "to"), [[...place, child]])
    }
    const item = itemOf(child)
    if (!item.key || !["article", "li"].includes(child.localName)) return undefined // inserted by a middlebox
    const was = this.#isTrusted(item) ? this.keyOf(item.clientId) : item.key
    const known = this.#known.get(item.key) ?? this.#known.get(was)
    // A message that is not loaded yet: scrolling up will load it with this change.
    if (!known && !isOlder && this.#isOlder(item.position)) return undefined
    if (known && known.revision >= item.revision) return undefined
    if (item.isGone) return this.has(item.key) ? { ...this.#remove(item.key), isGone: true } : undefined
    this.know(item)
    const order = { key: item.key, element: child, isLast: item.isLast }
    return known ? { verb: "replace", ...order, was: known.key } : { verb: "insert", ...order }
  }

  // True if the position is before all loaded items, and older ones are not loaded yet.
  #isOlder(position) {
    if (!position || !this.#keys.size || !this.#hasOlder()) return false
    for (const shown of this.#keys.keys()) if (shown < position) return false
    return true
  }

  #remove(key) {
    const item = this.#known.get(key)
    this.#known.delete(key)
    if (this.#keys.get(item.position) === key) this.#keys.delete(item.position)
    return { verb: "remove", key }
  }

  #keepOnly(children) {
    const ids = new Set(children.map((child) => child.getAttribute("data-id")))
    const over = [...this.#known.values()].filter(({ id }) => id && !ids.has(id))
    return over.map(({ key }) => this.#remove(key))
  }

  // blocks: [index, kept units at the start, at the end, element with the HTML in between]
  #patch(patch, position, revision, blocks) {
    const item = this.#known.get(this.#keys.get(position))
    if (!item || item.revision >= revision) return undefined
    const pieces = []
    for (const [index, offset, kept, block] of blocks) {
      let old = item.sources.get(index) ?? ""
      if (block.hasAttribute("html")) old = old.replace(/<\/?(?:b|i|u|var)>/g, "") // the short form counts without colours
      if (offset + kept > old.length) return null
      const plain = old.slice(0, offset) + htmlOf(block) + old.slice(old.length - kept)
      pieces.push({ index, source: painted(plain, paintOf(block)) })
    }
    for (const { index, source } of pieces) item.sources.set(index, source)
    item.revision = revision
    return { verb: "append", key: item.key, pieces, revision, patch }
  }
}

const isBlock = (element) => element.localName === "chat-block"

const placeOf = (block) => (
  block.getAttribute("at") ?? `${block.getAttribute("index")},${block.getAttribute("offset")},0`
).split(",").map(Number)
const htmlOf = (block) => block.getAttribute("html") ?? block.textContent
const paintOf = (block) => block.getAttribute("paint") ?? ""

// What a check is of.
export const contentOf = (block) => (block.getAttribute("at") ?? "") + htmlOf(block) + paintOf(block)

// HTML with the colours of its code: of each, the characters since the one before, the element, the characters in it.
function painted(plain, paint) {
  let at = 0, html = ""
  for (const [, gap, tag, length] of paint.matchAll(/(\d+)([a-z]+)(\d+)/g)) {
    const start = at + Number(gap)
    html += `${plain.slice(at, start)}<${tag}>${plain.slice(start, at = start + Number(length))}</${tag}>`
  }
  return html + plain.slice(at)
}

const classed = (element, name) => [...element.children].filter((one) => (
  (one.getAttribute("class") ?? "").split(" ").includes(name)
))

// The item of an article or list entry, as the server renders it. key: its id, of an unsent message the client id;
// author: the person's UUID, "" of the assistant; sources: of the blocks that patches may append to.
export function itemOf(element) {
  const id = element.getAttribute("data-id")
  const isAnswerToCome = element.localName === "article" && !element.hasAttribute("data-position")
  return {
    key: id || element.getAttribute("data-client-id"), id, clientId: element.getAttribute("data-client-id"),
    author: element.getAttribute("data-author-id") ?? "", sources: sourcesOf(element),
    position: number(element, "data-position"), revision: number(element, "data-revision"),
    isLast: isAnswerToCome,
    isGone: isAnswerToCome ? element.getAttribute("data-state") !== "queued" : element.localName === "li" && element.hasAttribute("data-deleted"),
  }
}

function sourcesOf(article) {
  const blocks = classed(article, "body").flatMap((body) => classed(body, "block"))
  const known = blocks.filter((block) => block.hasAttribute("data-source"))
  return new Map(known.map((block) => [number(block, "data-index"), block.getAttribute("data-source")]))
}
