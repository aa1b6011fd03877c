// What is around the connection: the person (how closely to watch, by what they do) and the network (what is remembered
// of it between pages). Milliseconds.

const ACTIVE = 120000 // since the person last did something: active until, idle from
const IDLE = 600000

export class Presence {
  #usedAt = Date.now()

  constructor(onUse) {
    const use = () => { this.use(); onUse() }
    for (const kind of ["keydown", "pointerdown", "wheel"]) {
      addEventListener(kind, use, { passive: true, capture: true })
    }
  }

  use() { this.#usedAt = Date.now() }

  get level() {
    if (document.hidden) return "hidden"
    const unused = Date.now() - this.#usedAt
    return unused < ACTIVE ? "active" : unused < IDLE ? "visible" : "idle"
  }
}
