// Offline reading, the page's side: installs the service worker, asks it to keep this conversation, marks a kept page
// as such, and deletes all kept pages on sign-out.

import { ENDED, isConnected } from "../connection/states.js"
import { words } from "../chat/words.js"

const INSTALL_AFTER = 2000 // ms after connecting: the page's own requests come first
const KEEP_AFTER = 3000 // ms without another change

// → recheck(conversation): a page that is not there any more is not kept, either
export function readOffline(config, isAwaiting, rewriters) {
  const { instance, keptAt } = document.body.dataset
  const messages = document.getElementById("messages")
  let isOnline = false
  let timer = null

  // Update once a page: the browser itself checks only now and then.
  const install = async () => {
    await (await navigator.serviceWorker.register(config.worker_url)).update()
    return navigator.serviceWorker.ready
  }
  let installed = null
  let isReviewed = false
  const review = async () => {
    const listed = [...document.querySelectorAll("#conversations > li")].map(({ dataset }) => dataset.id)
    isReviewed = await ask({ type: "review", listed })
  }
  const keep = async () => {
    timer = null
    if (!isOnline || "unsaved" in document.body.dataset) return
    if (isAwaiting() || !window.htmx) return keepSoon(KEEP_AFTER) // its own files are still coming
    if (!isReviewed) await review()
    await askToKeep(location.origin + location.pathname)
  }
  const askToKeep = (url) => ask({ type: "keep", url, armour: rewriters.isHere })
  const ask = async (message) => {
    try {
      if (!navigator.serviceWorker) return false // missing on plain http hosts
      installed ??= install()
      const { active } = await installed
      active.postMessage(message)
      return true
    } catch (error) {
      installed = null // retried with the next change
      console.warn("nothing is kept for reading offline:", error.message)
      return false
    }
  }
  const keepSoon = (delay) => {
    clearTimeout(timer)
    timer = setTimeout(keep, delay)
  }

  show(keptAt)
  document.addEventListener("connection:changed", ({ detail: { status, reason } }) => {
    const wasOnline = isOnline
    isOnline = isConnected(status)
    if (isOnline) show(null)
    if (isOnline && !wasOnline) keepSoon(INSTALL_AFTER)
    if (status === "disconnected" && ENDED.includes(reason)) forget(instance)
  })
  if (messages) {
    const observer = new MutationObserver(() => keepSoon(KEEP_AFTER))
    observer.observe(messages, { attributeFilter: ["data-cursor"] })
  }
  document.querySelector("form.person")?.addEventListener("submit", () => forget(instance))
  const base = location.origin + config.messages_url
  return (id) => askToKeep(base.replace(/\{id\}.*/, id))
}

function show(keptAt) {
  const note = document.getElementById("kept")
  if (!note) return
  note.hidden = !keptAt
  const format = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" })
  if (keptAt) note.textContent = words("kept", format.format(new Date(keptAt)))
}

// Both ways: the worker may be storing a page right now, or may not exist.
async function forget(instance) {
  try {
    navigator.serviceWorker?.controller?.postMessage({ type: "empty" })
    for (const name of await window.caches?.keys() ?? []) {
      if (name.startsWith(`chatapp:${instance}:pages:`)) await caches.delete(name)
    }
  } catch (error) { console.error(error) }
}
