// Further entries of the list of conversations, by htmx (conversation/_older_conversations.html). Foreign answers are
// refused with a notice; rewritten ones are requested once more, in an armour.

import { isWhole, opened } from "../browser/integrity.js"
import { announce } from "./announcer.js"
import { words } from "./words.js"

const more = () => document.getElementById("older-conversations")

// onMore(): entries were added. → onCut(), to call when the list is back to its first page
export function guardOlderEntries(rewriters, onMore) {
  const list = document.getElementById("conversations")?.parentElement
  if (!list) return () => {}
  const first = more()?.cloneNode(true)
  let isArmoured = false
  let last = null // the last entry, if the link had the focus
  const show = (text) => {
    const slot = more()?.querySelector("[data-slot=problem]")
    if (slot) slot.textContent = text
    if (text) announce(text)
  }
  list.addEventListener("htmx:config:request", ({ detail: { ctx } }) => {
    isArmoured = rewriters.isHere
    if (isArmoured) ctx.request.body.set("armour", 1)
    last = more()?.contains(document.activeElement) ? list.querySelector("li.conversation:last-child") : null
    show("")
  })
  list.addEventListener("htmx:after:request", (event) => {
    const { ctx } = event.detail
    ctx.text = opened(ctx.text)
    const page = new DOMParser().parseFromString(ctx.text, "text/html")
    const entries = [...page.querySelectorAll("#conversations > li.conversation")]
    const isAltered = !isArmoured && !entries.every(isWhole)
    if (page.getElementById("older-conversations") && !isAltered) return
    event.preventDefault() // the link stays
    if (!isAltered) return show(words("not-done"))
    rewriters.note()
    setTimeout(() => more()?.querySelector("a")?.click())
  })
  list.addEventListener("htmx:error", () => show(words("not-done")))
  list.addEventListener("htmx:after:swap", () => {
    onMore()
    // The focused link was replaced: focus the first new entry.
    if (document.activeElement === document.body) last?.nextElementSibling?.querySelector("a")?.focus()
  })
  return () => restore(first, list)
}

// Makes the link continue after the last entry, also if it was removed at the end of the list.
function restore(first, list) {
  const link = first?.querySelector("a")
  const last = list.querySelector("li.conversation:last-child")
  if (!link || !last) return
  const { id, updated } = last.dataset
  const url = new URL(link.href)
  url.searchParams.set("before", `${Date.parse(updated)}.${id}`)
  link.setAttribute("href", url.pathname + url.search)
  link.setAttribute("hx-get", url.pathname + url.search)
  const fresh = first.cloneNode(true)
  more()?.replaceWith(fresh)
  window.htmx?.process(fresh)
}
