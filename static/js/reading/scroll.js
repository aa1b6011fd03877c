// Where the reader is: at the end of the log, which then stays in sight while it grows, or anywhere above, where
// nothing moves. Any movement up leaves the end, however small; coming back to it follows again.

const NEAR_END = 60 // px: who scrolls down to so near the end means the end
const UP = ["ArrowUp", "PageUp", "Home"]
const DOWN = ["ArrowDown", "PageDown", " "]

export class Scroll {
  #log; #jump
  #isAtEnd = true
  #isHeld = false // a button is pressed: what it is pressed on must not move away under it
  #frame = 0
  #seen = { top: 0, height: 0 }
  #aim = Infinity // where the end was when the reader last moved down: it may be further by the time one is there
  #finger = 0

  constructor(log, content, jump) {
    this.#log = log
    this.#jump = jump
    const on = (target, type, act) => target.addEventListener(type, act, { passive: true })
    on(log, "scroll", () => this.#onScroll())
    // Each of these is known before it is seen: a frame of ours in between must not undo it.
    on(log, "wheel", ({ deltaY, ctrlKey }) => { if (!ctrlKey) this.#move(deltaY) })
    on(log, "keydown", ({ key, shiftKey }) => {
      if (key === "End") this.toEnd()
      else this.#move(UP.includes(key) || (key === " " && shiftKey) ? -1 : DOWN.includes(key) ? 1 : 0)
    })
    on(log, "touchstart", ({ touches }) => { this.#finger = touches[0].clientY })
    on(log, "touchmove", ({ touches }) => {
      this.#move(this.#finger - touches[0].clientY)
      this.#finger = touches[0].clientY
    })
    on(log, "pointerdown", ({ button }) => {
      this.#isHeld = button === 0
      this.#aim = Infinity
    })
    for (const type of ["pointerup", "pointercancel", "blur"]) on(window, type, () => this.#release())
    // What grows without our doing (fonts, the composer, a phone's keyboard) must not leave the end either.
    if (!window.ResizeObserver) return
    const observer = new ResizeObserver(() => { if (this.#isAtEnd) this.toEnd() })
    observer.observe(log)
    if (content) observer.observe(content)
  }

  toEnd() {
    this.#isAtEnd = true
    if (this.#jump) this.#jump.hidden = true
    // Once a frame: each time makes the browser lay the page out.
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0
      if (!this.#isAtEnd || this.#isHeld) return // meanwhile the reader moved
      this.#log.scrollTop = this.#log.scrollHeight
      this.#seen = { top: this.#log.scrollTop, height: this.#log.scrollHeight }
    })
  }

  // Something is new, at the end or elsewhere.
  onChange() {
    if (this.#isAtEnd) this.toEnd()
    else if (this.#jump) this.#jump.hidden = false
  }

  // Changes what stands above the reader without moving what is read.
  keeping(change) {
    const { scrollHeight: height, scrollTop: top } = this.#log
    change()
    this.#log.scrollTop = top + this.#log.scrollHeight - height
  }

  #move(distance) {
    if (distance > 0) this.#aim = this.#log.scrollHeight
    else if (distance < 0 && this.#log.scrollTop > 0) this.#isAtEnd = false
  }

  #release() {
    if (!this.#isHeld) return
    this.#isHeld = false
    if (this.#isAtEnd) this.toEnd()
  }

  #onScroll() {
    const { scrollTop: top, scrollHeight: height, clientHeight } = this.#log
    const seen = this.#seen
    this.#seen = { top, height }
    // What shrank above moved the reader, not the other way round.
    const isUp = top < seen.top - Math.max(0, seen.height - height)
    const isNear = Math.min(height, this.#aim) - clientHeight - top < NEAR_END
    if (height - clientHeight - top < 1 || (top > seen.top && isNear)) {
      this.#isAtEnd = true
      if (this.#jump) this.#jump.hidden = true
    } else if (isUp) this.#isAtEnd = false
  }
}
