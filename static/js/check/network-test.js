// The page of a network test, for a network's admin without an account. The ticket is behind # in the address; it is
// sent by POST before each test, and comes back as a cookie that only the probes read.

import { section } from "./testing.js"
import { CheckView } from "./view.js"
import { brokenProbe, drawWay, nameProxy } from "./way.js"

const OPEN_WITHIN = 10000 // ms
const notice = document.getElementById("ticket")
const caption = document.getElementById("way-words")
function words(name, n = "") {
  const holder = document.getElementById("ticket-words").content
  return holder.querySelector(`[data-word="${name}"]`)?.textContent.replace("{n}", () => n) ?? ""
}

let isThere = false

function tell(state, text = words(state)) {
  notice.dataset.state = state
  notice.hidden = !text
  notice.textContent = text
}

// → false where there is no test without another link. Where nothing answers, the test says why.
async function open() {
  const ticket = location.hash.slice(1)
  if (!ticket) { tell("missing"); return false }
  const options = { method: "POST", headers: { Accept: "application/json" }, signal: AbortSignal.timeout(OPEN_WITHIN) }
  try {
    const response = await fetch(section.dataset.inside.replace(/^https?:\/\/[^/]+/, ""), { ...options, body: new URLSearchParams({ ticket }) })
    const answer = await response.json()
    if (response.ok) return take(answer)
    const code = answer.error?.code
    if (code !== "expired" && code !== "altered") return true
    tell(code)
    return false
  } catch { return true } // no answer of ours: the probes find out whose it is
}

function take({ there }) {
  isThere = there
  tell(there ? "there" : "elsewhere")
  return true
}

function conclude(found) {
  const probe = brokenProbe()
  const row = section.querySelector(`[data-probe="${probe}"]`)
  const number = [...section.querySelectorAll("[data-probe]")].indexOf(row) + 1
  caption.dataset.level = probe ? "failed" : "ok"
  caption.textContent = probe
    ? `${number}. ${row.querySelector(".question").textContent} ${row.querySelector(".answer").textContent}`
    : words("whole")
  const figure = section.querySelector("[data-slot=settings] figcaption")
  nameProxy(found.proxy && figure ? figure.textContent : "")
  if (found.mended === "yes") tell("mended", words("mended", new Date().toLocaleTimeString(document.documentElement.lang, { timeStyle: "short" })))
  else if (found.mended === "no") tell("works-elsewhere")
  else if (isThere) tell(found.outcomes.upgrade === "ok" ? "unsteady" : "not-yet")
}

if (section) {
  section.addEventListener("check:shown", drawWay)
  new CheckView({ before: open, after: conclude })
  drawWay()
  open()
  addEventListener("hashchange", open)
}

section.dataset.alive = ""
