// Warns of text that this browser could not store, and asks before the page closes.

import { words } from "./words.js"

const unkept = new Map() // name → problem: "full", "refused", "slow"

const ask = (event) => event.preventDefault()

// problem: null once it is stored, or no longer needed
export function noteUnkept(name, problem) {
  if (problem ? unkept.get(name) === problem : !unkept.has(name)) return
  if (problem) unkept.set(name, problem)
  else unkept.delete(name)
  // Only while needed: this listener may keep the page out of the back/forward cache.
  if (unkept.size) addEventListener("beforeunload", ask)
  else removeEventListener("beforeunload", ask)
  const note = document.getElementById("unkept")
  if (!note) return
  note.hidden = unkept.size === 0
  const text = words(`unkept-${[...unkept.values()].at(-1)}`)
  if (unkept.size && note.textContent !== text) note.textContent = text
}
