// Remembers networks between pages: if WebSocket worked, and if HTML was rewritten. The server keeps the former for a
// person's other browsers (chatapp/network_memory.py; tests/vectors/memory.json runs in both).

const HALF_LIFE = 72 * 3600000
const MOST_FAILURES = 8
const MOST_NETWORKS = 20
const REWRITERS = 7 * 24 * 3600000 // ms; afterwards the network gets another chance

export function trust(network, now) {
  if (!network) return 0.8
  const share = 2 ** (-Math.max(0, now - network.at) / HALF_LIFE)
  return (network.worked * share + 2) / ((network.worked + network.failed) * share + 2.5)
}

// hasWorked: true, false, or null if only the idle timeout was learned.
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

// If this browser does not know a network, it starts from the server's memory. Each page counts at most one failure and
// one success.
export class NetworkMemory {
  #world; #network; #report; #noted = new Set()

  // report({network, worked, killGap}): for the server.
  constructor(world, { network, remembered }, report) {
    this.#world = world
    this.#network = network
    this.#report = report
    if (remembered && !this.#read()[network]) this.#change((networks) => { networks[network] = remembered })
  }

  // → {is_doubtful: WebSocket failed here before, killGap: ms of silence after which a proxy cuts sockets, or 0}
  get lesson() {
    const network = this.#network ? this.#read()[this.#network] : null
    return { is_doubtful: trust(network, this.#world.wall()) < 0.5, killGap: network?.killGap ?? 0 }
  }

  // Called at each change of the record. isSure: its reason was found out, not guessed.
  note(before, after, isSure) {
    const blamed = isSure && ["upgrade-refused", "upgrade-hung", "mute", "unstable"].includes(after.wsReason)
    if (after.status === "connected" && before.status !== "connected") this.#add("worked", true)
    else if (after.status === "polling" && after.ws === "none" && blamed) this.#add("failed", false)
    if (after.killGap !== before.killGap) this.#add(`gap ${after.killGap}`, null, after.killGap)
  }

  // The network was mended: its failures say nothing any more.
  forgive() { this.#change((networks) => { if (networks[this.#network]) networks[this.#network].failed = 0 }) }

  #add(what, hasWorked, killGap = 0) {
    if (!this.#network || this.#noted.has(what)) return
    this.#noted.add(what)
    this.#report({ network: this.#network, worked: hasWorked, killGap })
    this.#change((networks) => noteNetwork(networks, this.#network, this.#world.wall(), hasWorked, killGap))
  }

  #change(change) {
    try {
      const networks = this.#read()
      change(networks)
      this.#world.notes.write("networks", networks)
    } catch (error) { console.error("networks: not remembered", error) } // the stored value has another form
  }

  #read() { return this.#world.notes.read("networks") ?? {} }
}

// The networks that rewrite HTML.
export class Rewriters {
  #world; #network; #isHere = false

  constructor(world, { network }) {
    this.#world = world
    this.#network = network
  }

  get isHere() { return this.#isHere || this.#read()[this.#network] > this.#world.wall() - REWRITERS }

  note() {
    this.#isHere = true
    if (!this.#network) return
    const networks = { ...this.#read(), [this.#network]: this.#world.wall() }
    const newest = Object.entries(networks).sort(([, one], [, other]) => other - one).slice(0, MOST_NETWORKS)
    this.#world.notes.write("rewriters", Object.fromEntries(newest))
  }

  #read() { return this.#world.notes.read("rewriters") ?? {} }
}
