// The quality of the connection: a score from 0 to 100, a level with hysteresis, and the main limit; every five
// seconds, from the last minute. tests/vectors/quality.json has examples. "unknown" is not good. Milliseconds.

const TICK = 5000
const WINDOW = 60000
const HALF_LIFE = 300000
const REPORT_EVERY = 60000
const LEVELS = ["lost", "poor", "fair", "good", "excellent"]
const FLOORS = { lost: 0, poor: 1, fair: 45, good: 70, excellent: 85 }
const UNKNOWN = { score: null, level: "unknown", limit: null }

const levelOf = (score) => LEVELS.findLast((level) => score >= FLOORS[level]) ?? "lost"

export class Quality {
  verdict = UNKNOWN
  #rtt = 0; #jitter = 0; #samples = []; #drops = []; #smooth = null; #below = 0; #above = 0

  answered(now, rtt, jitter) {
    this.#rtt = rtt
    this.#jitter = jitter
    this.#samples.push([now, true])
  }

  lost(now) { this.#samples.push([now, false]) }

  dropped(now) { this.#drops.push(now) }

  // extra: the delay of news beyond the round trip (half the interval of plain polls).
  tick(now, isLive, isHidden, extra) {
    this.#samples = this.#samples.filter(([at]) => now - at <= WINDOW)
    this.#drops = this.#drops.filter((at) => now - at <= 6 * HALF_LIFE)
    if (!isLive && !isHidden) {
      this.#smooth = 0
      this.verdict = { score: 0, level: "lost", limit: "drops" }
    } else if (isHidden || this.#samples.length < 3) {
      this.#smooth = null
      this.verdict = UNKNOWN
    } else {
      const costs = this.#costs(now, extra)
      const raw = Math.max(0, 100 - Object.values(costs).reduce((sum, cost) => sum + cost, 0))
      if (this.#smooth === null) this.#smooth = raw
      else this.#smooth += raw < this.#smooth ? 0.8 * (raw - this.#smooth) : Math.min(10, 0.4 * (raw - this.#smooth))
      const [worst, cost] = Object.entries(costs).reduce((one, other) => other[1] > one[1] ? other : one)
      this.verdict = { score: Math.floor(this.#smooth + 0.5), level: this.#level(), limit: cost >= 1 ? worst : null }
    }
    return this.verdict
  }

  #costs(now, extra) {
    const lost = this.#samples.filter(([, good]) => !good).length / this.#samples.length
    const breaks = this.#drops.reduce((sum, at) => sum + 2 ** (-(now - at) / HALF_LIFE), 0)
    return {
      delay: Math.min(50, Math.max(0, this.#rtt + extra - 100) / 20), jitter: Math.min(15, this.#jitter / 20),
      loss: Math.min(40, 250 * lost), drops: Math.min(40, 15 * breaks),
    }
  }

  #level() {
    const score = this.#smooth
    let { level } = this.verdict
    const plain = levelOf(score)
    if (level === "unknown") return plain
    const place = LEVELS.indexOf(level)
    if (LEVELS.indexOf(plain) <= place - 2) {
      this.#below = this.#above = 0
      return plain
    }
    const higher = levelOf(score - 5)
    this.#below = score < FLOORS[level] - 3 ? this.#below + 1 : 0
    this.#above = LEVELS.indexOf(higher) > place ? this.#above + 1 : 0
    if (this.#below >= 2) {
      this.#below = 0
      level = plain
    } else if (this.#above >= 3) {
      this.#above = 0
      level = higher
    }
    return level
  }
}

// Judges every five seconds; `on` gets the events, `report` samples for the server's statistics.
export class QualityWatch {
  #quality = new Quality(); #world; #core; #reportedAt = -Infinity; #reported = "unknown"

  // core: {read() → {isLive, isHidden, extra}, on(event), report(type, {data})}
  constructor(world, core) {
    this.#world = world
    this.#core = core
    this.#schedule()
  }

  #schedule() {
    this.#world.later(() => {
      this.#schedule()
      this.#tick()
    }, TICK)
  }

  // Called at each event, with the record before and after it.
  note(event, before, after) {
    const now = this.#world.now()
    if (event.type === "measured") this.#quality.answered(now, event.rtt, event.jitter ?? 0)
    else if (event.type === "ws_suspect" || event.type === "poll_failed") this.#quality.lost(now)
    const isCut = event.type === "ws_closed" && before.status === "connected" && !after.offline
    if (isCut && !("advice_ms" in event)) this.#quality.dropped(now)
  }

  #tick() {
    const now = this.#world.now()
    const { isLive, isHidden, extra } = this.#core.read()
    const verdict = this.#quality.tick(now, isLive, isHidden, extra)
    this.#core.on({ type: "quality", ...verdict })
    const isNews = verdict.level !== this.#reported || now - this.#reportedAt >= REPORT_EVERY
    if (!isNews || (verdict.level === "unknown" && this.#reported === "unknown")) return
    this.#reported = verdict.level
    this.#reportedAt = now
    this.#core.report("quality", { data: verdict })
  }
}
