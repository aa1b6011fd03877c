// What is around the connection: the person (how closely to watch, by what they do) and the network (what is remembered
// of it between pages), and the clock. Milliseconds.

const ACTIVE = 120000 // since the person last did something: active until, idle from
const IDLE = 600000

// Since 1970 as the browser's clock said when the page began, and what has passed since: nobody can set it. What is
// compared within a page is read here; Date.now() is for what people are shown, and for what outlives the page.
export const steadyClock = () => Math.round(performance.timeOrigin + performance.now())

export class Presence {
  #usedAt = steadyClock()

  constructor(onUse) {
    const use = () => { this.use(); onUse() }
    for (const kind of ["keydown", "pointerdown", "wheel"]) {
      addEventListener(kind, use, { passive: true, capture: true })
    }
  }

  use() { this.#usedAt = steadyClock() }

  get level() {
    if (document.hidden) return "hidden"
    const unused = steadyClock() - this.#usedAt
    return unused < ACTIVE ? "active" : unused < IDLE ? "visible" : "idle"
  }
}

// From the page's own load: how long a connection took.
export function latency() {
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

// --- what is remembered of networks (chatapp/connection/memory.py) ---

const HALF_LIFE = 72 * 3600000
const MOST_FAILURES = 8
const MOST_NETWORKS = 20

export function trust(network, now) {
  if (!network) return 0.8
  const share = 2 ** (-Math.max(0, now - network.at) / HALF_LIFE)
  return (network.worked * share + 2) / ((network.worked + network.failed) * share + 2.5)
}

// hasWorked: true, false, or null where only the idle time-out was learned.
export function noteNetwork(networks, key, now, hasWorked, killGap = 0) {
  const before = networks[key] ?? { worked: 0, failed: 0, at: now, killGap: 0 }
  const share = 2 ** (-Math.max(0, now - before.at) / HALF_LIFE)
  let worked = before.worked * share
  let failed = before.failed * share
  if (hasWorked) {
    worked += 1
    failed /= 2
  } else if (hasWorked === false) failed = Math.min(MOST_FAILURES, failed + 1)
  networks[key] = { worked, failed, at: now, killGap: killGap || before.killGap }
  const names = Object.keys(networks).sort((one, other) => networks[one].at - networks[other].at)
  for (const name of names.slice(0, -MOST_NETWORKS)) delete networks[name]
}

// Kept in localStorage under this instance's and person's name, and by the server for the person's other browsers: one
// that knows nothing of a network begins with what the server remembers. Each page counts one failure and one success
// at most.
export class NetworkMemory {
  #key; #network; #report; #noted = new Set()

  // report({network, worked, killGap}): for the server.
  constructor(prefix, { network, remembered }, report) {
    this.#key = `${prefix}:networks`
    this.#network = network
    this.#report = report
    if (remembered && !this.#read()[network]) this.#change((networks) => { networks[network] = remembered })
  }

  // → {is_doubtful, killGap}: WebSocket failed here before; a proxy cuts sockets that are silent for so long.
  get lesson() {
    const network = this.#network ? this.#read()[this.#network] : null
    return { is_doubtful: trust(network, Date.now()) < 0.5, killGap: network?.killGap ?? 0 }
  }

  // Every change of the connection's record. isSure: its reason was found out, not guessed.
  note(before, after, isSure) {
    const blamed = isSure && ["upgrade-refused", "upgrade-hung", "mute", "unstable"].includes(after.wsReason)
    if (after.status === "connected" && before.status !== "connected") this.#add("worked", true)
    else if (after.status === "polling" && after.ws === "none" && blamed) this.#add("failed", false)
    if (after.killGap !== before.killGap) this.#add(`gap ${after.killGap}`, null, after.killGap)
  }

  #add(what, hasWorked, killGap = 0) {
    if (!this.#network || this.#noted.has(what)) return
    this.#noted.add(what)
    this.#report({ network: this.#network, worked: hasWorked, killGap })
    this.#change((networks) => noteNetwork(networks, this.#network, Date.now(), hasWorked, killGap))
  }

  #change(change) {
    try {
      const networks = this.#read()
      change(networks)
      localStorage.setItem(this.#key, JSON.stringify(networks))
    } catch (error) { console.error("networks: not remembered", error) }
  }

  #read() {
    try { return JSON.parse(localStorage.getItem(this.#key)) ?? {} } catch { return {} }
  }
}

// What the browser tells of itself: on(event's name), and onReborn() where its cache of pages gave the page back.
export function listen(on, onReborn, watchesNetwork) {
  document.addEventListener("visibilitychange", () => on(document.hidden ? "hidden" : "wake"))
  document.addEventListener("resume", () => on("wake")) // thawed by the browser
  addEventListener("online", () => on("online"))
  addEventListener("offline", () => on("offline"))
  addEventListener("pageshow", (event) => { if (event.persisted) onReborn() })
  if (watchesNetwork) onNetworkChange(() => on("online"))
}

// What the quality is judged by: does anything get through, and how much later than the round trip says?
export function delivery({ status }, { held, every }) {
  const isLive = status !== "reconnecting" && status !== "error"
  return { isLive, isHidden: document.hidden, extra: status === "polling" && !held ? every / 2 : 0 }
}
