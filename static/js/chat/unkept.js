// What this browser could not keep: the page says so, and asks before it closes.

import { words } from "./words.js"

const unkept = new Map() // what → why: "full", "refused", "slow"

const ask = (event) => event.preventDefault()

// what: a name; problem: why it is not kept, or null once it is, or is no longer needed
export function noteUnkept(what, problem) {
  if (problem ? unkept.get(what) === problem : !unkept.has(what)) return
  if (problem) unkept.set(what, problem)
  else unkept.delete(what)
  // Only while there is something to ask for: such a listener may keep the page out of the browser's cache.
  if (unkept.size) addEventListener("beforeunload", ask)
  else removeEventListener("beforeunload", ask)
  const note = document.getElementById("unkept")
  if (!note) return
  note.hidden = unkept.size === 0
  const text = words(`unkept-${[...unkept.values()].at(-1)}`)
  if (unkept.size && note.textContent !== text) note.textContent = text
}
