// The rest of the list of conversations, by htmx (conversation/_older_conversations.html): only entries of ours are taken
// over, and where they were rewritten on the way, the same answer comes again in an armour. Where none comes, it is said.

import { isWhole, opened } from "../browser/integrity.js"
import { announce } from "./announcer.js"
import { words } from "./words.js"

const way = () => document.getElementById("older-conversations")

// onMore(): there are more entries. → onCut(): the list is its first page again
export function guardOlderEntries(rewriters, onMore) {
  const list = document.getElementById("conversations")?.parentElement
  if (!list) return () => {}
  const first = way()?.cloneNode(true)
  let isArmoured = false
  let last = null // the entry after which the new ones come, where the keyboard was on the link
  const tell = (text) => {
    const slot = way()?.querySelector("[data-slot=problem]")
    if (slot) slot.textContent = text
    if (text) announce(text)
  }
  list.addEventListener("htmx:config:request", ({ detail: { ctx } }) => {
    isArmoured = rewriters.isHere
    if (isArmoured) ctx.request.body.set("armour", 1)
    last = way()?.contains(document.activeElement) ? list.querySelector("li.conversation:last-child") : null
    tell("")
  })
  list.addEventListener("htmx:after:request", (event) => {
    const { ctx } = event.detail
    ctx.text = opened(ctx.text)
    const page = new DOMParser().parseFromString(ctx.text, "text/html")
    const entries = [...page.querySelectorAll("#conversations > li.conversation")]
    const isAltered = !isArmoured && !entries.every(isWhole)
    if (page.getElementById("older-conversations") && !isAltered) return
    event.preventDefault() // the link stays
    if (!isAltered) return tell(words("not-done"))
    rewriters.note()
    setTimeout(() => way()?.querySelector("a")?.click())
  })
  list.addEventListener("htmx:error", () => tell(words("not-done")))
  list.addEventListener("htmx:after:swap", () => {
    onMore()
    // The link that had the focus is another one.
    if (document.activeElement === document.body) last?.nextElementSibling?.querySelector("a")?.focus()
  })
  return () => putBack(first, list)
}

// The link leads on from the last entry that is left, also where it had led to the end and was gone.
function putBack(first, list) {
  const link = first?.querySelector("a")
  const last = list.querySelector("li.conversation:last-child")
  if (!link || !last) return
  const { id, updated } = last.dataset
  const url = new URL(link.href)
  url.searchParams.set("before", `${Date.parse(updated)}.${id}`)
  link.setAttribute("href", url.pathname + url.search)
  link.setAttribute("hx-get", url.pathname + url.search)
  const fresh = first.cloneNode(true)
  way()?.replaceWith(fresh)
  window.htmx?.process(fresh)
}
