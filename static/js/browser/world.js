// The ports of a page: time, randomness, network, local storage, and browser events. The connection's core
// (static/js/connection/) reaches the browser only through these.

import { ask, session } from "./asking.js"
import { isWhole, opened } from "./integrity.js"
import { Polls } from "./polls.js"

// prefix: of this instance's and person's keys in localStorage
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
    page: document.body.dataset, // {epoch, mark, person}
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

// → {send(text) → true if it was sent, close(code), buffered: unsent bytes}. May throw.
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

// Calls back at each sign of user activity.
function onUse(act) {
  for (const kind of ["keydown", "pointerdown", "wheel"]) addEventListener(kind, act, { passive: true, capture: true })
}

// The connection time of the page's load, in ms.
function latency() {
  const [page] = performance.getEntriesByType("navigation")
  const connect = page ? page.connectEnd - page.connectStart : 0
  return Math.max(0, Math.min(500, connect || 0))
}

// Calls back on another type of network, if the browser reports it. "change" also fires for mere estimates of speed.
function onNetworkChange(act) {
  const network = navigator.connection
  let kind = network?.type
  network?.addEventListener?.("change", () => {
    if (network.type !== kind) act()
    kind = network.type
  })
}

// Browser events: on(name), and onRestore() when the page returns from the back/forward cache.
function listen(on, onRestore, watchesNetwork) {
  document.addEventListener("visibilitychange", () => on(document.hidden ? "hidden" : "wake"))
  document.addEventListener("resume", () => on("wake")) // thawed by the browser
  addEventListener("online", () => on("online"))
  addEventListener("offline", () => on("offline"))
  addEventListener("pageshow", (event) => { if (event.persisted) onRestore() })
  if (watchesNetwork) onNetworkChange(() => on("online"))
}
