// The ports of a page: time, randomness, network, local storage, and browser events. The connection's core
// (static/js/connection/) reaches the browser only through these.

import { ask, session } from "./asking.js"
import { isWhole, opened } from "./integrity.js"
import { listen, onUse } from "./page-events.js"
import { Polls } from "./polls.js"
import { uuid } from "./uuid.js"

// prefix: of this instance's and person's keys in localStorage
export function pageWorld(prefix, { ws_url: url, sign_in_url: signIn }) {
  const polls = new Polls()
  const id = uuid()
  return {
    id, // this page's, in its reports and on its sockets
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
    openSocket: (replaces, socket) => openSocket(url, id, replaces, socket),
    parse: (html) => [...Object.assign(document.createElement("template"), { innerHTML: html }).content.children],
    isWhole,
    opened,
  }
}

// → {send(text) → true if it was sent, close(code), buffered: unsent bytes}. May throw.
function openSocket(url, id, replaces, { onText, onClose }) {
  const address = new URL(url, location.href)
  address.protocol = address.protocol.replace("http", "ws")
  const socket = new WebSocket(`${address.href}?page=${id}${replaces && `&replaces=${replaces}`}`)
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

// The connection time of the page's load, in ms.
function latency() {
  const [page] = performance.getEntriesByType("navigation")
  const connect = page ? page.connectEnd - page.connectStart : 0
  return Math.max(0, Math.min(500, connect || 0))
}
