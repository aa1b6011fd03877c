// Where the reader is: at the end of the log, which then stays in sight while it grows, or anywhere above, where
// nothing moves. Any movement up leaves the end, however small; coming back to it follows again. A tab remembers for
// each conversation what was read, so that whoever comes back, or reloads, is where one was.

const NEAR_END = 60 // px: who scrolls down to so near the end means the end
const UP = ["ArrowUp", "PageUp", "Home"]
const DOWN = ["ArrowDown", "PageDown", " "]
const MOST_PAGES = 25 // of older messages that are loaded to get back
const MOST_FRAMES = 30 // what comes into view gets its true height only then: the place is set until it stands …
const ENOUGH_STILL = 3 // … for so many frames

export class Scroll {
  #log; #content; #jump; #key
  #isAtEnd = true
  #isHeld = false // a button is pressed: what it is pressed on must not move away under it
  #frame = 0
  #seen = { top: 0, height: 0 }
  #aim = Infinity // where the end was when the reader last moved down: it may be further by the time one is there
  #finger = 0
  #pages = 0
  #wanted = null // { id, block, offset }: where the reader was

  // key: of the place in sessionStorage
  constructor(log, content, jump, key) {
    this.#log = log
    this.#content = content
    this.#jump = jump
    this.#key = key
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
      this.#wanted = null
    })
    for (const type of ["pointerup", "pointercancel", "blur"]) on(window, type, () => this.#release())
    addEventListener("pagehide", () => this.#remember())
    document.addEventListener("visibilitychange", () => { if (document.hidden) this.#remember() })
    // What grows without our doing (fonts, the composer, a phone's keyboard) must not leave the end either.
    if (!window.ResizeObserver) return
    const observer = new ResizeObserver(() => { if (this.#isAtEnd) this.toEnd() })
    observer.observe(log)
    if (content) observer.observe(content)
  }

  toEnd() {
    this.#isAtEnd = true
    this.#wanted = null
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
    if (this.#wanted) this.#goBack()
  }

  // --- coming back ---

  begin() {
    try {
      this.#wanted = JSON.parse(sessionStorage.getItem(this.#key))
    } catch (error) { console.error(error) }
    if (!this.#wanted) return this.toEnd()
    this.#isAtEnd = false
    if (this.#jump) this.#jump.hidden = false
    this.#goBack()
  }

  // Not on the page: its top comes into view, which brings older messages, as far as that is sensible.
  #goBack(frames = MOST_FRAMES, still = 0) {
    const { id, block, offset } = this.#wanted
    const article = document.getElementById(id)
    if (!article) {
      if (document.getElementById("older")?.hidden !== false || this.#pages++ > MOST_PAGES) return this.toEnd()
      this.#log.scrollTop = 0
      return
    }
    const part = article.querySelector(`:scope > .body > .block[data-index="${Number(block)}"]`) ?? article
    const distance = this.#below(part) - offset
    this.#log.scrollTop += distance
    const stood = Math.abs(distance) < 1 ? still + 1 : 0
    if (frames <= 0 || stood > ENOUGH_STILL) return this.#wanted = null
    requestAnimationFrame(() => { if (this.#wanted) this.#goBack(frames - 1, stood) })
  }

  #remember() {
    const article = this.#isAtEnd ? null : this.#firstInSight(this.#content.querySelectorAll("article.message"))
    const block = article && this.#firstInSight(article.querySelectorAll(":scope > .body > .block"))
    try {
      if (!article) return sessionStorage.removeItem(this.#key)
      const place = { id: article.id, block: block?.dataset.index, offset: this.#below(block ?? article) }
      sessionStorage.setItem(this.#key, JSON.stringify(this.#wanted ?? place))
    } catch (error) { console.error("place not stored", error) }
  }

  // How far its top is below the log's.
  #below(element) { return element.getBoundingClientRect().top - this.#log.getBoundingClientRect().top }

  #firstInSight(elements) {
    const top = this.#log.getBoundingClientRect().top
    return [...elements].find((one) => one.getBoundingClientRect().bottom > top) ?? null
  }

  #move(distance) {
    if (distance) this.#wanted = null
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
    if (this.#wanted) return // not the reader's movement
    if (height - clientHeight - top < 1 || (top > seen.top && isNear)) {
      this.#isAtEnd = true
      if (this.#jump) this.#jump.hidden = true
    } else if (isUp) this.#isAtEnd = false
  }
}
