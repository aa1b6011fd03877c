// Pages without a browser: the shipped core with ports that only note what is wanted. Who drives it (core.py) says what
// happens and when, and does what was asked for. Everything that goes in and out is plain data; times are milliseconds.

import { Connection } from "../../static/js/connection/connection.js"
import { Items } from "../../static/js/connection/feeds.js"
import { Outbox } from "../../static/js/connection/outbox.js"

// What Python's parser makes of an element: {t: tag, a: attributes, c: children, x: text of one without children, s: source}
class Element {
  #tree; #children = null

  constructor(tree) { this.#tree = tree }

  get localName() { return this.#tree.t }
  get children() { return this.#children ??= (this.#tree.c ?? []).map((tree) => new Element(tree)) }
  get textContent() { return this.#tree.x ?? this.children.map((child) => child.textContent).join("") }
  get source() { return this.#tree.s }
  getAttribute(name) { return this.#tree.a?.[name] ?? null }
  hasAttribute(name) { return this.#tree.a !== undefined && name in this.#tree.a }
}

const elements = (trees) => trees.map((tree) => new Element(tree))

const isOfClass = (name) => (element) => (element.getAttribute("class") ?? "").split(" ").includes(name)

// What a reader sees of one feed, as text.
class Shown {
  rows = new Map(); inserted = []

  constructor(person) { this.items = new Items(person) }

  apply(element) {
    const { orders, fits } = this.items.apply(element)
    for (const { verb, key, was, element: one, pieces, revision, patch } of orders) {
      if (was !== key) this.rows.delete(was)
      if (verb === "remove") this.rows.delete(key)
      else if (verb === "append") {
        const row = this.rows.get(key)
        for (const { index, source } of pieces) row.blocks[index] = source
        row.state = patch.getAttribute("state") ?? row.state
        row.revision = revision
      } else {
        this.rows.set(key, one.localName === "li" ? entryOf(one) : messageOf(one))
        if (verb === "insert") this.inserted.push(this.rows.get(key))
      }
    }
    return fits
  }
}

const said = (element, ...names) => Object.fromEntries(names.map((name) => [name, element.getAttribute(`data-${name}`) ?? ""]))

const entryOf = (item) => ({ ...said(item, "id", "updated"), title: item.textContent.trim() })

function messageOf(article) {
  const { id, author, state, "client-id": client_id } = said(article, "id", "client-id", "author", "state")
  const number = (name) => Number(article.getAttribute(name))
  const body = article.children.find(isOfClass("body"))
  const blocks = (body?.children ?? []).filter(isOfClass("block"))
  const deleted = article.hasAttribute("data-deleted")
  return {
    id, client_id, author, state, deleted, position: number("data-position"), revision: number("data-revision"),
    body: author === "user" && !deleted ? body.textContent : "",
    blocks: Object.fromEntries(blocks.map((one) => [one.getAttribute("data-index"), one.getAttribute("data-source") ?? one.source])),
  }
}

// A generator of the page's own, so that a seed gives the same numbers everywhere (mulberry32).
function chance(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

class Page {
  now; wall; notes; isHidden = false; orders = []; shown = new Map(); acks = {}; refusals = {}
  #timers = new Map(); #asks = new Map(); #sockets = new Map(); #n = 0; #tell = null; #use = () => {}; #tells; #foretold = null

  // given: {config, table, seed, page: {epoch, mark, person}, notes, now, wall, tells: whether each new row and each change
  // of the record is an order, reports: whether its reports are}
  constructor({ config, table, seed, page, notes, now, wall, origin = "", tells = false, reports = false }) {
    Object.assign(this, { now, wall, notes, person: page.person })
    this.#tells = tells
    const world = this.#world(config, page, chance(seed), origin)
    this.connection = new Connection(config, table, world)
    this.outbox = new Outbox(world, this.#storage(), { take: () => ({ moved: null, entries: [] }), forget: () => {} }, (entry) => this.connection.deliver(entry))
    this.connection.outbox = this.outbox
    this.connection.view = {
      apply: (feed, element) => {
        const shown = this.#shownOf(feed)
        const fits = shown.apply(element)
        for (const row of shown.inserted.splice(0)) if (this.#tells) this.orders.push(["shown", feed, row])
        return fits
      },
      forget: (feed) => this.shown.get(feed)?.items.forget(),
      gone: (feed) => this.shown.delete(feed),
      isAwaiting: () => [...this.shown.values()].some(({ rows }) => [...rows.values()].some(isUnderWay)),
    }
    if (reports) this.connection.reports = { add: (report) => this.orders.push(["reported", { at: this.wall, ...report }]) }
    this.connection.onChange = (record) => this.#onChange(record)
    this.outbox.onChange = (entry, what) => this.#onOutbox(entry, what)
  }

  #shownOf(feed) {
    if (!this.shown.has(feed)) this.shown.set(feed, new Shown(this.person))
    return this.shown.get(feed)
  }

  #onChange(record) {
    const { status, reason, connectionType, wsReason } = record
    const text = JSON.stringify([status, reason, connectionType, wsReason])
    if (text !== this.status) this.orders.push(["status", status, reason, connectionType, wsReason])
    this.status = text
    if (this.#tells) this.orders.push(["changed", record])
    if (this.#tells && record.foretold !== this.#foretold) this.orders.push(["foretold", this.#foretold = record.foretold])
    this.outbox.setOpen(status === "connected" || status === "polling")
  }

  #onOutbox(entry, what) {
    if (what === "sent") this.acks[entry.id] = entry.ack
    if (what === "failed") this.refusals[entry.id] = entry.failed.code
    if (what === "sent" || what === "failed") this.orders.push([what, entry.id, entry.failed?.code ?? null])
    if (what === "added" && ["reconnecting", "error"].includes(this.connection.record.status)) this.connection.retry()
    this.connection.dispatch({ type: "queue", queued: this.outbox.size })
  }

  // --- the ports ---

  #world(config, page, random, origin) {
    return {
      page, random, latency: 0, origin, now: () => this.now, wall: () => this.wall,
      later: (act, ms) => this.#later(act, ms), cancel: (n) => this.#timers.delete(n),
      notes: { read: (name) => this.notes[name] ?? null, write: (name, value) => { this.notes[name] = value } },
      session: { token: "", refresh: () => this.#request("renew") },
      isHidden: () => this.isHidden, isOnline: () => true,
      listen: (tell) => { this.#tell = tell },
      onUse: (act) => { this.#use = act },
      ask: (method, url, fields, { within }) => this.#ask(method, url, fields, within),
      poll: (fields, within, request) => this.#poll(config.changes_url, fields, within, request),
      openSocket: (replaces, socket) => this.#openSocket(replaces, socket),
      parse: (html) => elements(JSON.parse(globalThis.parsed(html))),
      isWhole: () => true, opened: (text) => text,
    }
  }

  #later(act, ms = 0) {
    this.#n += 1
    this.#timers.set(this.#n, { at: this.now + Math.max(0, ms), act })
    return this.#n
  }

  #ask(method, url, fields, within) {
    return new Promise((resolve, reject) => {
      this.#send(method, url, fields, within, (answer) => {
        if (answer) resolve(answer)
        else reject(new Error("unreachable"))
      })
    })
  }

  // → its number. then(answer, or null where none came)
  #send(method, url, fields, within, then) {
    const n = this.#n += 1
    const timer = this.#later(() => { this.#drop(n); then(null) }, within)
    this.#asks.set(n, (answer) => {
      this.#asks.delete(n)
      this.#timers.delete(timer)
      then(answer)
    })
    this.orders.push(["ask", n, method, url, fields.map(([name, value]) => [name, String(value)])])
    return n
  }

  #drop(n) {
    if (this.#asks.delete(n)) this.orders.push(["drop", n])
  }

  #poll(url, fields, within, { accept, take, over, end }) {
    let isOver = false
    const finish = () => {
      if (isOver) return
      isOver = true
      over()
      this.#later(end)
    }
    const n = this.#send("GET", url, fields, within, (answer) => {
      const text = answer && accept(answer)
      if (text) take(elements(JSON.parse(globalThis.parsed(text)))[0].children)
      finish()
    })
    return () => { this.#drop(n); finish() }
  }

  #openSocket(replaces, socket) {
    const n = this.#n += 1
    this.#sockets.set(n, { ...socket, isOpen: false })
    this.orders.push(["open", n, replaces])
    const owner = this
    return {
      buffered: 0,
      send(text) {
        if (!owner.#sockets.get(n)?.isOpen) return false
        owner.orders.push(["say", n, text])
        return true
      },
      close(code) { if (owner.#sockets.delete(n)) owner.orders.push(["hang", n, code]) },
    }
  }

  // What somebody else does, and tells by `done`; null: it could not.
  #request(...order) {
    return new Promise((resolve, reject) => {
      const n = this.#n += 1
      this.#asks.set(n, (found) => {
        this.#asks.delete(n)
        if (found === null) reject(new Error(`cannot ${order[0]}`))
        else resolve(found)
      })
      this.orders.push([order[0], n, ...order.slice(1)])
    })
  }

  #storage() {
    return {
      rows: () => this.#request("read"),
      write: async (operations) => operations.length ? this.#request("write", operations) : [],
      tell: () => {}, listen: () => {},
    }
  }

  // --- what happens ---

  get due() { return Math.min(...[...this.#timers.values()].map(({ at }) => at)) }

  // The one timer that is due first, if any is.
  tick() {
    let first = null
    for (const [n, { at }] of this.#timers) if (at <= this.now && (first === null || at < this.#timers.get(first).at)) first = n
    if (first === null) return
    const { act } = this.#timers.get(first)
    this.#timers.delete(first)
    act()
  }

  start() {
    this.connection.start()
    this.outbox.load()
  }

  follow(feed) {
    if (this.shown.has(feed)) return
    this.#shownOf(feed)
    this.connection.follow(feed, 0)
  }

  unfollow(feed) { if (this.shown.delete(feed)) this.connection.unfollow(feed) }
  send(id, conversation, body, create) { this.outbox.add(id, conversation, body, { create }) }
  // use, and retry: the person; else what the browser says.
  hint(type) {
    if (type === "hidden" || type === "wake") this.isHidden = type === "hidden"
    if (type === "use") this.#use()
    else if (type === "retry") this.connection.retry()
    else this.#tell(type)
  }

  opened(n) { const socket = this.#sockets.get(n); if (socket) socket.isOpen = true }

  frame(n, text) {
    this.opened(n)
    this.#sockets.get(n)?.onText(text)
  }

  closed(n, code, reason) {
    const socket = this.#sockets.get(n)
    this.#sockets.delete(n)
    socket?.onClose(code, reason)
  }

  answered(n, answer) { this.#asks.get(n)?.(answer && { isRedirect: false, ...answer, header: (name) => answer.headers?.[name.toLowerCase()] ?? null }) }
  done(n, found) { this.#asks.get(n)?.(found) }

  late(html) {
    for (const element of elements(JSON.parse(globalThis.parsed(html)))) {
      for (const one of element.localName === "chat-answer" ? element.children : [element]) {
        if (one.localName === "chat-feed") this.connection.receive(one, "late")
      }
    }
  }
}

const isUnderWay = ({ author, state }) => author === "assistant" && (state === "running" || state === "queued")

const pages = new Map()
let count = 0

export function open(given) {
  count += 1
  pages.set(count, new Page(given))
  return count
}

export const close = (id) => pages.delete(id)

// What happened to a page, and when by both clocks.
export function happen(id, now, wall, what, ...given) {
  const page = pages.get(id)
  Object.assign(page, { now, wall })
  page[what](...given)
  return null
}

// → {orders, due: when `tick` is wanted, or null}
export function taken(id) {
  const page = pages.get(id)
  const { orders, due } = page
  page.orders = []
  return { orders, due: Number.isFinite(due) ? due : null }
}

// What can be seen of a page.
export function seen(id) {
  const { connection, outbox, acks, refusals, notes } = pages.get(id)
  return { record: connection.record, cursors: connection.cursors, waiting: outbox.size, acks, refusals, notes }
}

export const rows = (id, feed) => [...pages.get(id).shown.get(feed)?.rows.values() ?? []]
