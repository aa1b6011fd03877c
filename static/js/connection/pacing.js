// The pace of polls: held open if the network allows it, shorter if a proxy cuts them, plain if it buffers.
// Pure, without a clock; tests/vectors/pacing.json has examples. Milliseconds.

const GAP = 20 // after an answer with news, or a hold that ran its length
const EARLY = 1000 // a hold that ends with nothing new sooner than this was not held
const LEARNED_FOR = 5 * 60000 // then full holds are tried again
const SHORTEST_HOLD = 4000 // shorter holds cost more than plain polls
const SLOWEST = { visible: 5, idle: 10, hidden: 20 } // most multiples of the interval without user activity

export class Pacing {
  why = "held"; learnedHold = 0
  #pollMs; #holdMs; #factor = 1; #early = 0; #cuts = []; #learnedUntil = 0

  constructor(pollMs, holdMs) {
    this.#pollMs = pollMs
    this.#holdMs = holdMs
  }

  // The hold of the next poll; 0: a plain poll. `why`: held, cut, buffered, unheld, setting.
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

  // A held poll was answered at once with nothing new; the second time, holds are given up.
  endedEarly(now) {
    this.#early += 1
    if (this.#early >= 2) this.#learn(now, "unheld", 0)
  }

  // A held poll was cut. Twice after the same time: a proxy's timeout, so shorter holds; otherwise none.
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

  // The delay before the next poll. isSound: the answer moved a cursor, or was empty.
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
