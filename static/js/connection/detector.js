// The failure detector of one WebSocket: pure, without a clock; tests/vectors/detector.json says what it does. Any byte
// is life; echoes only give something to wait for. Milliseconds.

import { rttEstimate } from "./delays.js"

// How often to ask, by what the person does; hidden: the heartbeat setting; proving: a socket that does not carry yet.
const ECHO = { proving: 500, awaiting: 2000, active: 5000, visible: 5000, offline: 5000, idle: 15000 }
const VERDICT = 2000 // after a hint (wake, online, resume) the old socket has so long to say something
const DEAD_RTOS = 3
// A line that was only late gets that long and a quarter more before it is suspected again; half an hour of echoes that
// are in time halves it. Of the suspicions on a mobile line that stalls, three quarters prove true instead of a quarter.
const PATIENCE = { factor: 1.25, most: 3000, fade: 0.998 }
// Bytes come, but an echo is not answered for so long: nothing of ours may get through (suspect), or does (dead).
const UPSTREAM = { suspect: 2500, dead: 6000 }

export class Detector {
  suspicion = ""; lastEcho = 0; verdictAt = null; pending = []; probes = new Map(); sends = new Map()
  #count = 0; #base = 0; #isUpstream = false; #buffered = 0; #bufferedAt = null; #pace = { fast: 0, slow: 0, above: 0 }

  // facts: {heartbeat, triggers, before: the detector of the socket before, killGap: of a proxy, or 0}
  constructor(now, { heartbeat, triggers, before = null, killGap = 0 }) {
    const { estimate = null, patience = 0 } = before ?? {}
    Object.assign(this, { lastIn: now, heartbeat, triggers, estimate, patience, killGap })
  }

  get rto() { return this.estimate?.rto ?? 1000 }

  // How long an answer may take before it is missed.
  get allowance() { return Math.max(this.rto, this.patience) }

  ask(now) {
    this.#count += 1
    this.lastEcho = now
    this.probes.set(this.#count, now)
    this.pending.push(now)
    return this.#count
  }

  sent(id, now) { this.sends.set(id, now) }

  settled(id) { this.sends.delete(id) }

  // True where that ends a suspicion. Where the doubt is whether anything of ours gets through, only an echo does.
  heard(now, isEcho = false) {
    const recovered = this.suspicion !== "" && (isEcho || !this.#isUpstream)
    const late = recovered ? PATIENCE.factor * (now - this.#base) : 0
    this.patience = Math.max(this.patience, Math.min(PATIENCE.most, late))
    Object.assign(this, { lastIn: now, verdictAt: null, pending: [] })
    if (recovered) this.suspicion = ""
    return recovered
  }

  // The smoothed round trip, or null where this one says nothing (Karn's rule).
  echoed(n, now, isClean) {
    const asked = this.probes.get(n)
    for (const older of [...this.probes.keys()]) if (older <= n) this.probes.delete(older)
    if (asked === undefined || !isClean) return null
    this.#takePace(now - asked)
    this.patience *= PATIENCE.fade
    this.estimate = rttEstimate(this.estimate, now - asked)
    return this.estimate.srtt
  }

  // When the oldest echo was asked for that was not answered.
  get #unanswered() { return Math.min(...this.probes.values()) }

  #takePace(sample) {
    const pace = this.#pace
    if (!pace.slow) return Object.assign(pace, { fast: sample, slow: sample })
    pace.fast += (sample - pace.fast) / 2
    pace.above = pace.fast > 3 * pace.slow && pace.fast > 1000 ? pace.above + 1 : 0
    return pace.slow += (sample - pace.slow) / 16
  }

  // After sleep or on a hint: what was outstanding says nothing. Ask again (the caller does), judge soon.
  verify(now) {
    this.pending = []
    this.probes.clear()
    for (const id of this.sends.keys()) this.sends.set(id, now)
    this.#bufferedAt = null
    this.#base = now
    this.verdictAt = now + VERDICT
  }

  // A poll brought what this silent socket should have: it has two time-outs left to say anything.
  expect(now) { this.verdictAt ??= now + 2 * this.rto }

  buffer(amount, now) {
    if (amount === 0) this.#bufferedAt = null
    else if (this.#bufferedAt === null || amount < this.#buffered) this.#bufferedAt = now
    this.#buffered = amount
  }

  interval(activity) {
    const usual = ECHO[activity] ?? this.heartbeat
    return this.killGap ? Math.max(1000, Math.min(usual, this.killGap / 2)) : usual
  }

  due(activity) {
    return Math.min(this.#echoAt(activity), ...this.#verdicts(activity), ...this.#suspicions(activity).values())
  }

  // What is due: "dead", "suspect" (see `suspicion`), "echo" (call ask() and send it).
  tick(now, activity) {
    if (this.#verdicts(activity).some((at) => at <= now)) return ["dead"]
    for (const [name, at] of this.#suspicions(activity)) {
      if (at > now) continue
      this.suspicion = name
      const asked = [...this.pending, ...this.sends.values()]
      this.#isUpstream = name === "echo" && !this.pending.length
      this.#base = Math.max(this.lastIn, asked.length ? Math.min(...asked) : now)
      this.sends.clear() // the connection repeats them by POST
      this.#pace.above = 0
      this.#bufferedAt = null
      return ["suspect", "echo"]
    }
    return this.#echoAt(activity) <= now ? ["echo"] : []
  }

  #echoAt(activity) {
    if (this.suspicion && activity !== "hidden") return this.lastEcho + this.rto
    // Also while bytes come: they do not tell whether ours get through. (Nobody judges a hidden page.)
    const since = activity === "hidden" ? Math.max(this.lastEcho, this.lastIn) : this.lastEcho
    return since + this.interval(activity)
  }

  // When it is dead; a hidden page judges nothing, for its timers are throttled.
  #verdicts(activity) {
    if (activity === "hidden") return []
    const times = this.verdictAt === null ? [] : [this.verdictAt]
    if (this.suspicion && this.pending.length >= 2) times.push(this.#base + this.allowance + (DEAD_RTOS - 1) * this.rto)
    if (this.probes.size >= 2) times.push(this.#unanswered + Math.max(UPSTREAM.dead, 2 * DEAD_RTOS * this.rto))
    return times
  }

  #suspicions(activity) {
    const times = new Map()
    if (this.suspicion || activity === "hidden" || activity === "offline") return times
    const [asked] = this.pending
    if (this.pending.length) times.set("echo", asked + this.allowance)
    else if (this.probes.size) times.set("echo", this.#unanswered + Math.max(UPSTREAM.suspect, 2 * this.allowance))
    if (this.sends.size) times.set("send", Math.min(...this.sends.values()) + this.allowance)
    if (this.#bufferedAt !== null) times.set("buffered", this.#bufferedAt + 1000)
    if (this.#pace.above >= 3) times.set("slow", this.lastIn)
    if (this.killGap && this.pending.length) {
      times.set("idle-kill", Math.max(asked + 500, this.lastIn + this.killGap - 3000))
    }
    for (const name of [...times.keys()]) if (!this.triggers.includes(name)) times.delete(name)
    return times
  }
}
