// Scrolling of the log: at the end it follows new text; anywhere above, nothing moves. Any scroll up leaves the end,
// however small; returning to it follows again. A tab stores the reading position of each conversation, and restores it
// after a reload.

const NEAR_END = 60 // px: a scroll down that ends this near follows again
const UP = ["ArrowUp", "PageUp", "Home"]
const DOWN = ["ArrowDown", "PageDown", " "]
const MOST_PAGES = 25 // of older messages to load for the stored position
const MOST_FRAMES = 30 // elements get their true height only in view: repeat until the position is stable …
const STABLE_FRAMES = 3 // … in more frames than this

export class Scroll {
  #log; #content; #jump; #key
  #isAtEnd = true
  #isDown = false // a mouse button is down: its target must not move away
  #frame = 0
  #last = { top: 0, height: 0 }
  #goal = Infinity // the end at the last scroll down: it may move before the reader arrives
  #touchY = 0
  #pages = 0
  #wanted = null // { id, block, offset }: the position to restore

  // key: of the position in sessionStorage
  constructor(log, content, jump, key) {
    this.#log = log
    this.#content = content
    this.#jump = jump
    this.#key = key
    const on = (target, type, act) => target.addEventListener(type, act, { passive: true })
    on(log, "scroll", () => this.#onScroll())
    // Input events come before their scroll: a frame of toEnd() in between must not undo it.
    on(log, "wheel", ({ deltaY, ctrlKey }) => { if (!ctrlKey) this.#move(deltaY) })
    on(log, "keydown", ({ key, shiftKey }) => {
      if (key === "End") this.toEnd()
      else this.#move(UP.includes(key) || (key === " " && shiftKey) ? -1 : DOWN.includes(key) ? 1 : 0)
    })
    on(log, "touchstart", ({ touches }) => { this.#touchY = touches[0].clientY })
    on(log, "touchmove", ({ touches }) => {
      this.#move(this.#touchY - touches[0].clientY)
      this.#touchY = touches[0].clientY
    })
    on(log, "pointerdown", ({ button }) => {
      this.#isDown = button === 0
      this.#goal = Infinity
      this.#wanted = null
    })
    for (const type of ["pointerup", "pointercancel", "blur"]) on(window, type, () => this.#release())
    addEventListener("pagehide", () => this.#remember())
    document.addEventListener("visibilitychange", () => { if (document.hidden) this.#remember() })
    // Other changes of size (fonts, the composer, an on-screen keyboard) must not leave the end either.
    if (!window.ResizeObserver) return
    const observer = new ResizeObserver(() => { if (this.#isAtEnd) this.toEnd() })
    observer.observe(log)
    if (content) observer.observe(content)
  }

  toEnd() {
    this.#isAtEnd = true
    this.#wanted = null
    this.#showJump(false)
    // Once a frame: it forces a layout.
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0
      if (!this.#isAtEnd || this.#isDown) return // the reader scrolled meanwhile
      this.#log.scrollTop = this.#log.scrollHeight
      this.#last = { top: this.#log.scrollTop, height: this.#log.scrollHeight }
    })
  }

  #showJump(isShown) { if (this.#jump) this.#jump.hidden = !isShown }

  // New content, at the end or elsewhere.
  onChange() {
    if (this.#isAtEnd) this.toEnd()
    else this.#showJump(true)
  }

  // Runs a change above the reader, who stays in place.
  keeping(change) {
    const { scrollHeight: height, scrollTop: top } = this.#log
    change()
    this.#log.scrollTop = top + this.#log.scrollHeight - height
    if (this.#wanted) this.#restore()
  }

  // --- the stored position ---

  begin() {
    try {
      this.#wanted = JSON.parse(sessionStorage.getItem(this.#key))
    } catch (error) { console.error(error) }
    if (!this.#wanted || location.hash) return this.toEnd() // #composer: a message was just sent by a form
    this.#isAtEnd = false
    this.#showJump(true)
    this.#restore()
  }

  // If the article is missing, scrolls to the top, which loads older messages, up to MOST_PAGES.
  #restore(frames = MOST_FRAMES, still = 0) {
    const { id, block, offset } = this.#wanted
    const article = document.getElementById(id)
    if (!article) {
      if (document.getElementById("older")?.hidden !== false || this.#pages++ > MOST_PAGES) return this.toEnd()
      this.#log.scrollTop = 0
      return
    }
    const part = article.querySelector(`:scope > .body > .block[data-index="${Number(block)}"]`) ?? article
    const distance = this.#topOf(part) - offset
    this.#log.scrollTop += distance
    const stable = Math.abs(distance) < 1 ? still + 1 : 0
    if (frames <= 0 || stable > STABLE_FRAMES) return this.#wanted = null
    requestAnimationFrame(() => { if (this.#wanted) this.#restore(frames - 1, stable) })
  }

  #remember() {
    const article = this.#isAtEnd ? null : this.#firstInSight(this.#content.querySelectorAll("article.message"))
    const block = article && this.#firstInSight(article.querySelectorAll(":scope > .body > .block"))
    try {
      if (!article) return sessionStorage.removeItem(this.#key)
      const place = { id: article.id, block: block?.dataset.index, offset: this.#topOf(block ?? article) }
      sessionStorage.setItem(this.#key, JSON.stringify(this.#wanted ?? place))
    } catch (error) { console.error("place not stored", error) }
  }

  // From the log's top to the element's, in px.
  #topOf(element) { return element.getBoundingClientRect().top - this.#log.getBoundingClientRect().top }

  #firstInSight(elements) {
    const top = this.#log.getBoundingClientRect().top
    return [...elements].find((one) => one.getBoundingClientRect().bottom > top) ?? null
  }

  #move(distance) {
    if (distance) this.#wanted = null
    if (distance > 0) this.#goal = this.#log.scrollHeight
    else if (distance < 0 && this.#log.scrollTop > 0) this.#isAtEnd = false
  }

  #release() {
    if (!this.#isDown) return
    this.#isDown = false
    if (this.#isAtEnd) this.toEnd()
  }

  #onScroll() {
    const { scrollTop: top, scrollHeight: height, clientHeight } = this.#log
    const seen = this.#last
    this.#last = { top, height }
    // Content that shrank above moves scrollTop without a scroll by the reader.
    const isUp = top < seen.top - Math.max(0, seen.height - height)
    const isNear = Math.min(height, this.#goal) - clientHeight - top < NEAR_END
    if (this.#wanted) return // our scroll, not the reader's
    if (height - clientHeight - top < 1 || (top > seen.top && isNear)) {
      this.#isAtEnd = true
      this.#showJump(false)
    } else if (isUp) this.#isAtEnd = false
  }
}
