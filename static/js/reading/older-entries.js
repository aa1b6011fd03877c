// The rest of the list of conversations, by htmx (conversation/_older_conversations.html): only entries of ours are taken
// over, and where they were rewritten on the way, the same answer comes again in an armour.

import { isWhole, opened } from "../transports/integrity.js"

export function guardOlderEntries(rewriters) {
  const list = document.getElementById("conversations")?.parentElement
  if (!list) return
  let isArmoured = false
  list.addEventListener("htmx:config:request", ({ detail: { ctx } }) => {
    isArmoured = rewriters.isHere
    if (isArmoured) ctx.request.body.set("armour", 1)
  })
  list.addEventListener("htmx:after:request", (event) => {
    const { ctx } = event.detail
    ctx.text = opened(ctx.text)
    const page = new DOMParser().parseFromString(ctx.text, "text/html")
    const entries = [...page.querySelectorAll("#conversations > li.conversation")]
    const isAltered = !isArmoured && !entries.every(isWhole)
    if (entries.length && !isAltered) return
    event.preventDefault() // the link stays
    if (!isAltered) return
    rewriters.note()
    setTimeout(() => list.querySelector("#older-conversations a")?.click())
  })
}
