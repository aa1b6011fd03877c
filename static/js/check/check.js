// Run test on the page /connection: makes the probes in turn, shows each as it ends, judges them by the page's rules
// (verdicts.js) and words the rest for the network's admin. Needs nothing of the chat's own connection.

import { copy } from "../chat/clipboard.js"
import { ask, Line } from "./probes.js"
import { words as commonWords } from "../chat/words.js"
import { level, outcome, proxyOf, verdict } from "./verdicts.js"

const ANSWER = 10000 // ms for an answer that should come at once
const LARGE = 60000
const LARGE_BYTES = 512 * 1024
const HOLD_GRACE = 6000
const ECHOES = 5
const MARK = "<chat-test"

const section = document.getElementById("check")
function word(key, n = "") {
  const holder = document.getElementById("check-words").content
  return holder.querySelector(`[data-word="${CSS.escape(key)}"]`)?.textContent.replace("{n}", () => n) ?? ""
}

class Check {
  #table = JSON.parse(section.dataset.rules)
  #outcomes = {}; #figures = {}; #headers = ""; #known = {}; #reached = false

  async run(idleMs) {
    const data = section.dataset
    this.#note("http", await this.#ask(data.health))
    this.#reached = ["ok", "slow"].includes(this.#outcomes.http)
    if (this.#reached) this.#note("mark", await this.#mark())
    if (level(this.#table, this.#outcomes.mark ?? "skipped") === "ok") await this.#test(idleMs)
    for (const probe of this.#table.probes) if (!this.#outcomes[probe]) this.#show(probe, "skipped")
    return this.#conclude()
  }

  async #mark() {
    this.#start("mark")
    const nonce = String(Math.random()).slice(2)
    const query = new URLSearchParams({ nonce, origin: location.origin })
    const facts = await this.#ask(`${section.dataset.test}/mark?${query}`)
    const said = new DOMParser().parseFromString(facts.marked ? facts.text : "", "text/html").querySelector("chat-test")
    const is = (name) => said?.getAttribute(name) === "yes"
    this.#known = {
      drill: said?.getAttribute("drill") || null, protocol: said?.getAttribute("protocol") ?? null,
      origin: is("origin"), offered: is("offered"), expected: said?.getAttribute("expected") ?? "",
    }
    return { ...facts, fresh: said?.getAttribute("nonce") === nonce, header: is("header") }
  }

  async #test(idleMs) {
    const { dataset } = section
    const line = this.#known.offered ? new Line(new URL(dataset.ws, location.href.replace(/^http/, "ws"))) : null
    this.#start("upgrade")
    this.#note("upgrade", { ...await line?.open(), ...this.#known })
    let silence = null
    if (this.#outcomes.upgrade === "ok") {
      await this.#echo(line)
      silence = this.#idle(line, idleMs)
    }
    await this.#poll()
    await this.#parts("stream", `${dataset.test}/stream`, ANSWER, (got) => ({
      ...got, spread_ms: got.at.length ? got.at.at(-1) - got.at[0] : 0,
    }))
    await this.#parts("large", `${dataset.test}/large`, LARGE, (got) => ({
      ...got, complete: got.complete && got.text.length > LARGE_BYTES,
    }))
    await this.#hold()
    await silence
    line?.close()
  }

  async #echo(line) {
    this.#start("echo")
    const times = []
    for (let n = 1; n <= ECHOES && times.length === n - 1; n += 1) {
      const ms = await line.echo(n)
      if (ms !== null) times.push(ms)
    }
    const ms = times.length ? [...times].sort((a, b) => a - b)[times.length >> 1] : null
    this.#note("echo", { missing: times.length < ECHOES ? 1 : 0, ms, closed: line.closed, ...this.#known })
  }

  async #idle(line, idleMs) {
    if (line.closed) return
    this.#start("idle", idleMs)
    const facts = await line.idle(idleMs)
    this.#note("idle", { ...facts, ms: facts.silent_ms, ...this.#known })
  }

  async #poll() {
    this.#start("poll")
    const facts = await this.#ask(`${section.dataset.changes}?epoch=test&c=list%3A0`, ANSWER, "<chat-answer")
    this.#note("poll", { ...facts, ...this.#known })
  }

  async #parts(probe, url, within, judge) {
    this.#start(probe)
    this.#note(probe, judge(await this.#ask(url, within)))
  }

  async #hold() {
    const wanted = 1000 * Number(section.dataset.holdS)
    this.#start("hold", wanted)
    const url = `${section.dataset.test}/hold?seconds=${wanted / 1000}`
    const facts = wanted ? await this.#ask(url, wanted + HOLD_GRACE) : { ms: 0 }
    this.#note("hold", { ...facts, wanted_ms: wanted, short_ms: wanted - facts.ms })
  }

  async #ask(url, within = ANSWER, mark = MARK) {
    const got = await ask(url, within, mark, this.#reached)
    this.#headers += got.headers
    return got
  }

  #start(probe, ms) {
    const row = section.querySelector(`[data-probe="${probe}"]`)
    row.dataset.level = "running"
    row.querySelector("[data-slot=answer]").textContent = ms ? word("running-for", Math.round(ms / 1000)) : word("running")
  }

  #note(probe, facts) {
    const found = outcome(this.#table, probe, facts)
    const { ms } = facts
    if (found === "ok" && Number.isFinite(ms)) this.#figures[probe] = ms < 10000 ? word("ms", ms) : word("seconds", Math.round(ms / 1000))
    this.#show(probe, found)
  }

  #show(probe, found) {
    this.#outcomes[probe] = found
    const row = section.querySelector(`[data-probe="${probe}"]`)
    row.dataset.level = level(this.#table, found)
    row.dataset.outcome = found
    row.querySelector("[data-slot=answer]").textContent = this.answer(probe)
    row.querySelector("[data-slot=figure]").textContent = this.#figures[probe] ?? ""
  }

  answer(probe) {
    const found = this.#outcomes[probe]
    const said = word(`outcomes-${probe}-${found}`) || word(`outcomes-${found}`)
    if (found !== "origin" || !this.#known.expected) return said
    return `${said}. ${word("came", location.origin)} ${word("expected", this.#known.expected)}`
  }

  #conclude() {
    const found = verdict(this.#table, this.#outcomes)
    const proxy = proxyOf(this.#table, this.#headers)
    const settings = new Map() // proxy → one figure with the lines of all fixes
    for (const fix of found.fixes) {
      const all = [...section.querySelectorAll(`template[data-fix="${fix}"]`)]
      const own = all.filter((template) => template.dataset.proxy === proxy)
      for (const { content, dataset } of own.length ? own : all) {
        const known = settings.get(dataset.proxy)
        const lines = content.querySelector("code").textContent
        if (!known) settings.set(dataset.proxy, content.cloneNode(true))
        else if (!known.textContent.includes(lines)) known.querySelector("code").append(`\n${lines}`)
      }
    }
    return { ...found, settings: [...settings.values()], outcomes: this.#outcomes, figures: this.#figures }
  }

  // What whoever runs the network can use.
  letter(found) {
    const rows = [...section.querySelectorAll("[data-probe]")].map((row) => {
      const { probe } = row.dataset
      const figure = found.figures[probe] ? ` (${found.figures[probe]})` : ""
      return `- ${row.querySelector(".question").textContent} ${this.answer(probe)}${figure}`
    })
    const fixes = found.fixes.map((fix) => `- ${word(`fixes-${fix}`)}`)
    const settings = found.settings.flatMap((part) => [
      "", word("letter-settings", part.querySelector("figcaption").textContent), part.querySelector("code").textContent,
    ])
    return [
      word("letter-head", location.origin), new Date().toISOString(), "", word(`verdicts-${found.name}`), "", ...rows, "",
      ...(fixes.length ? [word("letter-helps"), ...fixes, ...settings, ""] : []),
      word("letter-needs", new URL(section.dataset.ws, location.href).href.replace(/^http/, "ws")),
      word("letter-browser", navigator.userAgent),
    ].join("\n")
  }
}

class CheckView {
  #box = document.getElementById("check-verdict"); #letter = ""; #isRunning = false

  constructor() {
    section.addEventListener("click", ({ target }) => {
      const button = target.closest("[data-check]")
      if (button?.dataset.check === "copy") copy(button, this.#letter, word("copied"))
      else if (button) this.#run(1000 * Number(button.dataset.check === "long" ? section.dataset.longS : section.dataset.idleS))
    })
  }

  async #run(idleMs) {
    if (this.#isRunning) return
    this.#setRunning(true)
    this.#box.hidden = true
    for (const row of section.querySelectorAll("[data-probe]")) {
      row.dataset.level = "waiting"
      for (const slot of row.querySelectorAll("[data-slot]")) slot.textContent = ""
    }
    const check = new Check()
    try {
      const found = await check.run(idleMs)
      this.#letter = check.letter(found)
      this.#draw(found)
    } catch (error) { console.error(error) }
    this.#setRunning(false)
    section.querySelector("[data-check=run]").textContent = word("again")
  }

  #setRunning(is) {
    this.#isRunning = is
    section.setAttribute("aria-busy", is)
    // Not disabled: that would take the keyboard's focus away.
    for (const button of section.querySelectorAll("[data-check=run], [data-check=long]")) button.setAttribute("aria-disabled", is)
  }

  #draw(found) {
    const slot = (name) => this.#box.querySelector(`[data-slot=${name}]`)
    Object.assign(this.#box.dataset, { verdict: found.name, worth: found.worth })
    slot("verdict").textContent = word(`verdicts-${found.name}`)
    slot("fixes").replaceChildren(...found.fixes.map((fix) => (
      Object.assign(document.createElement("li"), { textContent: word(`fixes-${fix}`) })
    )))
    slot("settings").replaceChildren(...found.settings.map((part) => part.cloneNode(true)))
    this.#box.querySelector("[data-part=help]").hidden = found.fixes.length === 0
    this.#box.hidden = false
  }
}

// What happened lately came with the page; what happens now is put before it.
class History {
  #list = document.getElementById("connection-history")
  #format = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "medium" })
  #state = null

  constructor() {
    for (const time of document.querySelectorAll("#connection-history time, .drill time")) this.#word(time)
    for (const row of this.#list.querySelectorAll("[data-reason]")) this.#why(row)
    document.addEventListener("connection:changed", ({ detail }) => this.#onChange(detail))
  }

  #onChange({ status, reason }) {
    if (status === this.#state || status === "connecting") return
    this.#state = status
    const chip = document.getElementById(`status-${status}`)?.content.querySelector(".chip")?.cloneNode(true)
    if (!chip) return
    chip.querySelector(".figure")?.remove()
    chip.removeAttribute("href") // it leads here
    chip.removeAttribute("title")
    const row = document.createElement("li")
    row.dataset.reason = reason ?? ""
    const time = Object.assign(document.createElement("time"), { dateTime: new Date().toISOString() })
    const why = Object.assign(document.createElement("span"), { className: "why" })
    why.dataset.slot = "why"
    row.append(time, chip, why)
    this.#word(time)
    this.#why(row)
    this.#list.querySelector(".quiet")?.remove()
    this.#list.prepend(row)
  }

  #word(time) { time.textContent = this.#format.format(new Date(time.dateTime)) }

  #why(row) { row.querySelector("[data-slot=why]").textContent = commonWords(`reason-${row.dataset.reason}`) }
}

if (section) {
  new CheckView()
  new History()
}

section.dataset.alive = ""
