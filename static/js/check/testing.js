// One connection test: runs the probes in turn, shows each result in its row, judges them by the page's rules
// (verdicts.js), and writes a letter to the network's admin. Independent of the chat's connection.

import { ask, Line } from "./probes.js"
import { level, outcome, proxyOf, verdict } from "./verdicts.js"

const ANSWER = 10000 // ms for an answer without a delay
const LARGE = 60000
const LARGE_BYTES = 512 * 1024
const HOLD_GRACE = 6000
const ECHOES = 5
const MARK = "<chat-test"
const MENDED = "<chat-mended"
const MENDED_WITHIN = 3000 // ms

export const section = document.getElementById("check")
export function word(key, n = "") {
  const holder = document.getElementById("check-words").content
  return holder.querySelector(`[data-word="${CSS.escape(key)}"]`)?.textContent.replace("{n}", () => n) ?? ""
}

const rowOf = (probe) => section.querySelector(`[data-probe="${probe}"]`)
// The link for the network's admin. Behind #, the ticket is sent to nobody, and is in no log.
const inside = (ticket) => `${new URL(section.dataset.inside, location.href).href}#${ticket}`
export const setSlot = (row, name, text) => { row.querySelector(`[data-slot=${name}]`).textContent = text }

// isInside: with the ticket of a network test, whose server says if it took the network for mended.
export class Check {
  #isInside
  mended = "" // "yes", "no": it works, but from another network
  #table = JSON.parse(section.dataset.rules)
  #outcomes = {}; #figures = {}; #headers = ""; #known = {}; #reached = false

  constructor(isInside = false) { this.#isInside = isInside }

  async run(idleMs) {
    const data = section.dataset
    this.#record("http", await this.#ask(data.health))
    this.#reached = ["ok", "slow"].includes(this.#outcomes.http)
    if (this.#reached) this.#record("mark", await this.#mark())
    if (level(this.#table, this.#outcomes.mark ?? "skipped") === "ok") await this.#test(idleMs)
    for (const probe of this.#table.probes) if (!this.#outcomes[probe]) this.#show(probe, "skipped")
    return this.#conclude()
  }

  async #mark() {
    this.#start("mark")
    const nonce = String(Math.random()).slice(2)
    const query = new URLSearchParams({ nonce, origin: location.origin, ...(this.#isInside ? { inside: 1 } : { ticket: 1 }) })
    const facts = await this.#ask(`${section.dataset.test}/mark?${query}`)
    const mark = new DOMParser().parseFromString(facts.marked ? facts.text : "", "text/html").querySelector("chat-test")
    const says = (name) => mark?.getAttribute(name)
    const is = (name) => says(name) === "yes"
    this.#known = {
      drill: says("drill") || null, protocol: says("protocol") ?? null,
      origin: is("origin"), offered: is("offered"), expected: says("expected") ?? "", ticket: says("ticket"),
    }
    return { ...facts, fresh: says("nonce") === nonce, header: is("header") }
  }

  async #test(idleMs) {
    const { dataset } = section
    const line = this.#known.offered ? new Line(new URL(this.#own(dataset.ws), location.href.replace(/^http/, "ws"))) : null
    this.#start("upgrade")
    this.#record("upgrade", { ...await line?.open(), ...this.#known })
    let silence = null
    if (this.#outcomes.upgrade === "ok") {
      await this.#echo(line)
      silence = this.#idle(line, idleMs)
    }
    await this.#poll()
    await this.#fetch("stream", this.#own(`${dataset.test}/stream`), ANSWER, (got) => ({
      ...got, spread_ms: got.at.length ? got.at.at(-1) - got.at[0] : 0,
    }))
    await this.#fetch("large", this.#own(`${dataset.test}/large`), LARGE, (got) => ({
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
    this.#record("echo", { missing: times.length < ECHOES ? 1 : 0, ms, closed: line.closed, ...this.#known })
  }

  async #idle(line, idleMs) {
    if (line.closed) return
    this.#start("idle", idleMs)
    const facts = await line.idle(idleMs)
    this.#record("idle", { ...facts, ms: facts.silent_ms, ...this.#known })
    if (this.#isInside) this.mended = /there="(\w+)"/.exec(await line.said(MENDED, MENDED_WITHIN))?.[1] ?? ""
  }

  async #poll() {
    this.#start("poll")
    const facts = await this.#ask(this.#own(`${section.dataset.changes}?epoch=test&c=list%3A0`), ANSWER, "<chat-answer")
    this.#record("poll", { ...facts, ...this.#known })
  }

  async #fetch(probe, url, within, judge) {
    this.#start(probe)
    this.#record(probe, judge(await this.#ask(url, within)))
  }

  async #hold() {
    const wanted = 1000 * Number(section.dataset.holdS)
    this.#start("hold", wanted)
    const url = this.#own(`${section.dataset.test}/hold?seconds=${wanted / 1000}`)
    const facts = wanted ? await this.#ask(url, wanted + HOLD_GRACE) : { ms: 0 }
    this.#record("hold", { ...facts, wanted_ms: wanted, short_ms: wanted - facts.ms })
  }

  // Requests by a ticket say so.
  #own(url) { return this.#isInside ? `${url}${url.includes("?") ? "&" : "?"}inside=1` : url }

  async #ask(url, within = ANSWER, mark = MARK) {
    const got = await ask(url, within, mark, this.#reached)
    this.#headers += got.headers
    return got
  }

  #start(probe, ms) {
    const row = rowOf(probe)
    row.dataset.level = "running"
    setSlot(row, "answer", ms ? word("running-for", Math.round(ms / 1000)) : word("running"))
  }

  #record(probe, facts) {
    const found = outcome(this.#table, probe, facts)
    const { ms } = facts
    if (found === "ok" && Number.isFinite(ms)) this.#figures[probe] = ms < 10000 ? word("ms", ms) : word("seconds", Math.round(ms / 1000))
    this.#show(probe, found)
  }

  #show(probe, found) {
    this.#outcomes[probe] = found
    const row = rowOf(probe)
    row.dataset.level = level(this.#table, found)
    row.dataset.outcome = found
    setSlot(row, "answer", this.answer(probe))
    setSlot(row, "figure", this.#figures[probe] ?? "")
    section.dispatchEvent(new Event("check:shown"))
  }

  answer(probe) {
    const found = this.#outcomes[probe]
    const text = word(`outcomes-${probe}-${found}`) || word(`outcomes-${found}`)
    if (found !== "origin" || !this.#known.expected) return text
    return `${text}. ${word("came", location.origin)} ${word("expected", this.#known.expected)}`
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
    const known = { proxy, ticket: this.#known.ticket, mended: this.mended }
    return { ...found, ...known, settings: [...settings.values()], outcomes: this.#outcomes, figures: this.#figures }
  }

  // The text for the network's admin.
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
      ...(found.ticket && found.worth !== "good" ? [word("letter-inside"), inside(found.ticket), ""] : []),
      word("letter-needs", new URL(section.dataset.ws, location.href).href.replace(/^http/, "ws")),
      word("letter-browser", navigator.userAgent),
    ].join("\n")
  }
}
