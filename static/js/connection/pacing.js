// How polls are paced: the rules of chatapp/connection/pacing.py, which gives the reasons; tests/vectors/pacing.json
// runs in both. Pure, without a clock. Milliseconds.

const GAP = 20
const EARLY = 1000
const LEARNED_FOR = 5 * 60000
const SHORTEST_HOLD = 4000
const SLOWEST = { visible: 5, idle: 10, hidden: 20 }

export class Pacing {
  why = "held"; learnedHold = 0
  #pollMs; #holdMs; #factor = 1; #early = 0; #cuts = []; #learnedUntil = 0

  constructor(pollMs, holdMs) {
    this.#pollMs = pollMs
    this.#holdMs = holdMs
  }

  hold(now) {
    if (this.#holdMs === 0) {
      this.why = "setting"
      return 0
    }
    if (now < this.#learnedUntil) return this.learnedHold
    this.why = "held"
    this.learnedHold = 0
    return this.#holdMs
  }

  held(took, news) {
    if (!news && took < EARLY) return
    this.#early = 0
    if (took >= (this.learnedHold || this.#holdMs) - EARLY) this.#cuts = []
  }

  endedEarly(now) {
    this.#early += 1
    if (this.#early >= 2) this.#learn(now, "unheld", 0)
  }

  cut(now, after) {
    if (after > (this.learnedHold || this.#holdMs)) return // silent, not cut
    this.#cuts = [...this.#cuts, after].slice(-2)
    if (this.#cuts.length < 2) return
    const [shortest, longest] = [Math.min(...this.#cuts), Math.max(...this.#cuts)]
    const hold = Math.floor(0.8 * shortest)
    const isTimeOut = longest - shortest <= 0.2 * longest && hold >= SHORTEST_HOLD
    this.#learn(now, "cut", isTimeOut ? hold : 0)
  }

  buffered(now) { this.#learn(now, "buffered", 0) }

  gap(now, activity, news, isSound = true) {
    this.#factor = news ? 1 : Math.min(this.#factor * 1.5, SLOWEST.hidden)
    return this.hold(now) && isSound ? GAP : this.interval(activity)
  }

  interval(activity) {
    if (activity === "awaiting") return Math.max(500, this.#pollMs / 3)
    if (activity in SLOWEST) return this.#pollMs * Math.min(this.#factor, SLOWEST[activity])
    this.#factor = 1
    return this.#pollMs
  }

  #learn(now, why, hold) {
    Object.assign(this, { why, learnedHold: hold })
    this.#learnedUntil = now + LEARNED_FOR
    this.#early = 0
    this.#cuts = []
  }
}
