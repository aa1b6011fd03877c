// Reading offline, the page's side: installs the service worker, has it keep this conversation as it is now, says what a
// kept page is, and empties the store when nobody is signed in any more.

import { isConnected } from "../connection/states.js"
import { words } from "../chat/words.js"

const INSTALL_AFTER = 2000 // once connected: what the page needs itself comes first
const KEEP_AFTER = 3000 // without another change

export function readOffline(config, isAwaiting, rewriters) {
  const { instance, keptAt } = document.body.dataset
  const messages = document.getElementById("messages")
  let isOnline = false
  let timer = null

  // Checked once a page: the browser itself would do so only now and then.
  const install = async () => {
    await (await navigator.serviceWorker.register(config.worker_url)).update()
    return navigator.serviceWorker.ready
  }
  let installed = null
  const keep = async () => {
    timer = null
    if (!isOnline || "unsaved" in document.body.dataset) return
    if (isAwaiting()) return keepSoon(KEEP_AFTER)
    try {
      if (!navigator.serviceWorker) return // plain http hosts have none
      installed ??= install()
      const { active } = await installed
      active.postMessage({ type: "keep", url: location.origin + location.pathname, armour: rewriters.isHere })
    } catch (error) {
      installed = null // tried again with the next change
      console.warn("nothing is kept for reading offline:", error.message)
    }
  }
  const keepSoon = (after) => {
    clearTimeout(timer)
    timer = setTimeout(keep, after)
  }

  tell(keptAt)
  document.addEventListener("connection:changed", ({ detail: { status, reason } }) => {
    const was = isOnline
    isOnline = isConnected(status)
    if (isOnline) tell(null)
    if (isOnline && !was) keepSoon(INSTALL_AFTER)
    if (status === "disconnected" && reason === "signed-out") forget(instance)
  })
  if (messages) {
    const observer = new MutationObserver(() => keepSoon(KEEP_AFTER))
    observer.observe(messages, { attributeFilter: ["data-cursor"] })
  }
  document.querySelector("form.person")?.addEventListener("submit", () => forget(instance))
}

function tell(keptAt) {
  const note = document.getElementById("kept")
  if (!note) return
  note.hidden = !keptAt
  const format = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" })
  if (keptAt) note.textContent = words("kept", format.format(new Date(keptAt)))
}

// Both: the worker may be keeping a page this very moment, and it may not be there at all.
async function forget(instance) {
  try {
    navigator.serviceWorker?.controller?.postMessage({ type: "empty" })
    for (const name of await window.caches?.keys() ?? []) {
      if (name.startsWith(`chatapp:${instance}:pages:`)) await caches.delete(name)
    }
  } catch (error) { console.error(error) }
}
