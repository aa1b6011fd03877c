// The ports of a page: time, chance, the network, what is kept between pages, and what the browser tells of itself. The
// connection's core (static/js/connection/) knows the world through these only.

import { ask, session } from "./asking.js"
import { isWhole, opened } from "./integrity.js"
import { Polls } from "./polls.js"

// prefix: of what is kept in localStorage, under this instance's and person's name
export function pageWorld(prefix, { ws_url: url, sign_in_url: signIn }) {
  const polls = new Polls()
  return {
    now: () => performance.timeOrigin + performance.now(), // see clock.js
    wall: Date.now,
    random: Math.random,
    later: (act, ms) => setTimeout(act, ms),
    cancel: (timer) => clearTimeout(timer),
    latency: latency(),
    origin: location.origin,
    page: document.body.dataset, // {epoch, mark, person}: of what it shows, and to whom
    notes: notes(prefix),
    session: session(signIn),
    isHidden: () => document.hidden,
    isOnline: () => navigator.onLine,
    listen,
    onUse,
    ask,
    poll: (fields, within, request) => polls.ask(fields, within, request),
    openSocket: (replaces, socket) => openSocket(url, replaces, socket),
    parse: (html) => [...Object.assign(document.createElement("template"), { innerHTML: html }).content.children],
    isWhole,
    opened,
  }
}

// → {send(text) → whether it went out, close(code), buffered: bytes that wait}. May throw.
function openSocket(url, replaces, { onText, onClose }) {
  const address = new URL(url, location.href)
  address.protocol = address.protocol.replace("http", "ws")
  const socket = new WebSocket(address.href + (replaces && `?replaces=${replaces}`))
  socket.onmessage = ({ data }) => onText(data)
  socket.onclose = ({ code, reason }) => onClose(code, reason)
  return {
    send(text) {
      if (socket.readyState !== WebSocket.OPEN) return false
      try { socket.send(text) } catch (error) { console.error(error); return false }
      return true
    },
    close(code) {
      socket.onmessage = socket.onclose = null
      try { socket.close(code) } catch (error) { console.error(error) }
    },
    get buffered() { return socket.bufferedAmount },
  }
}

const notes = (prefix) => ({
  read(name) {
    try { return JSON.parse(localStorage.getItem(`${prefix}:${name}`)) } catch { return null }
  },
  write(name, value) {
    try { localStorage.setItem(`${prefix}:${name}`, JSON.stringify(value)) } catch (error) { console.error(`${name}: not remembered`, error) }
  },
})

// The person does something here.
function onUse(act) {
  for (const kind of ["keydown", "pointerdown", "wheel"]) addEventListener(kind, act, { passive: true, capture: true })
}

// From the page's own load: how long a connection took.
function latency() {
  const [page] = performance.getEntriesByType("navigation")
  const connect = page ? page.connectEnd - page.connectStart : 0
  return Math.max(0, Math.min(500, connect || 0))
}

// Where the browser tells: another kind of network. It also tells of mere figures, which do not matter here.
function onNetworkChange(act) {
  const network = navigator.connection
  let kind = network?.type
  network?.addEventListener?.("change", () => {
    if (network.type !== kind) act()
    kind = network.type
  })
}

// What the browser tells of itself: on(event's name), and onReborn() where its cache of pages gave the page back.
function listen(on, onReborn, watchesNetwork) {
  document.addEventListener("visibilitychange", () => on(document.hidden ? "hidden" : "wake"))
  document.addEventListener("resume", () => on("wake")) // thawed by the browser
  addEventListener("online", () => on("online"))
  addEventListener("offline", () => on("offline"))
  addEventListener("pageshow", (event) => { if (event.persisted) onReborn() })
  if (watchesNetwork) onNetworkChange(() => on("online"))
}
