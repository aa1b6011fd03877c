// The failure detector of one WebSocket: pure, without a clock; tests/vectors/detector.json has examples. Any byte is a
// sign of life; echoes only elicit one. Milliseconds.

import { rttEstimate } from "./delays.js"

// Interval of echoes, by activity; proving: a socket before its proof; hidden: the heartbeat setting.
const ECHO = { proving: 500, awaiting: 2000, active: 5000, visible: 5000, offline: 5000, idle: 15000 }
const VERDICT = 2000 // after a hint (wake, online, resume), for any byte from the old socket
const DEAD_RTOS = 3
// After a false suspicion the allowance is at least 1.25 times the late answer's delay (up to 3 s); half an hour of timely
// echoes halves it. On a stalling mobile line 75 % of the suspicions are then right, not 25 %.
const PATIENCE = { factor: 1.25, most: 3000, fade: 0.998 }
// Bytes arrive, but an echo stays unanswered this long: our frames may not get through (suspect), or do not (dead).
const UPSTREAM = { suspect: 2500, dead: 6000 }

export class Detector {
  suspicion = ""; lastEcho = 0; verdictAt = null; pending = []; probes = new Map(); sends = new Map()
  #count = 0; #base = 0; #isUpstream = false; #buffered = 0; #bufferedAt = null; #pace = { fast: 0, slow: 0, above: 0 }

  // before: the detector of the previous socket; killGap: the idle timeout of a proxy, or 0
  constructor(now, { heartbeat, triggers, before = null, killGap = 0 }) {
    const { estimate = null, patience = 0 } = before ?? {}
    Object.assign(this, { lastIn: now, heartbeat, triggers, estimate, patience, killGap })
  }

  get rto() { return this.estimate?.rto ?? 1000 }

  // How long an answer may take before the socket is suspected.
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

  // → true if it ends a suspicion. A suspicion that our frames do not get through ends only by an echo.
  heard(now, isEcho = false) {
    const recovered = this.suspicion !== "" && (isEcho || !this.#isUpstream)
    const late = recovered ? PATIENCE.factor * (now - this.#base) : 0
    this.patience = Math.max(this.patience, Math.min(PATIENCE.most, late))
    Object.assign(this, { lastIn: now, verdictAt: null, pending: [] })
    if (recovered) this.suspicion = ""
    return recovered
  }

  // → the smoothed round trip, or null if this sample is ambiguous (Karn's rule)
  echoed(n, now, isClean) {
    const asked = this.probes.get(n)
    for (const older of [...this.probes.keys()]) if (older <= n) this.probes.delete(older)
    if (asked === undefined || !isClean) return null
    this.#takePace(now - asked)
    this.patience *= PATIENCE.fade
    this.estimate = rttEstimate(this.estimate, now - asked)
    return this.estimate.srtt
  }

  // When the oldest unanswered echo was sent.
  get #unanswered() { return Math.min(...this.probes.values()) }

  #takePace(sample) {
    const pace = this.#pace
    if (!pace.slow) return Object.assign(pace, { fast: sample, slow: sample })
    pace.fast += (sample - pace.fast) / 2
    pace.above = pace.fast > 3 * pace.slow && pace.fast > 1000 ? pace.above + 1 : 0
    return pace.slow += (sample - pace.slow) / 16
  }

  // After sleep or a hint: outstanding echoes prove nothing. The caller sends a new one; the verdict is due soon.
  verify(now) {
    this.pending = []
    this.probes.clear()
    for (const id of this.sends.keys()) this.sends.set(id, now)
    this.#bufferedAt = null
    this.#base = now
    this.verdictAt = now + VERDICT
  }

  // A poll brought news that this silent socket should have: it has two timeouts left.
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

  // → actions: "dead", "suspect" (see `suspicion`), "echo" (call ask() and send it)
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
    // Also while bytes arrive: they do not prove that ours get through. (Unless hidden: no verdicts then.)
    const since = activity === "hidden" ? Math.max(this.lastEcho, this.lastIn) : this.lastEcho
    return since + this.interval(activity)
  }

  // When it counts as dead. Never on a hidden page: its timers are throttled.
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
