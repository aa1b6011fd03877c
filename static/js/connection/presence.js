// The level of user activity. Milliseconds.

const ACTIVE = 120000 // since the last input: "active" below this
const IDLE = 600000 // "idle" from here

export class Presence {
  #world; #usedAt

  constructor(world, onUse) {
    this.#world = world
    this.use()
    world.onUse(() => { this.use(); onUse() })
  }

  use() { this.#usedAt = this.#world.now() }

  get level() {
    if (this.#world.isHidden()) return "hidden"
    const unused = this.#world.now() - this.#usedAt
    return unused < ACTIVE ? "active" : unused < IDLE ? "visible" : "idle"
  }
}
