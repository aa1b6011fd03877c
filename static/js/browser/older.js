// Moves entries and drafts of an older version from localStorage into the storage, in their order.

import { tooLate } from "./storage.js"

export function storedKeys(prefix) {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(prefix))
  } catch (error) {
    console.error(error)
    return []
  }
}

// → {entries, moved: a promise}. Entries that could not be moved stay in localStorage.
export function movedEntries(storage, prefix) {
  const keys = storedKeys(`${prefix}:outbox:`)
  const entries = keys.map(read).filter((one) => one?.id && one.conversation && typeof one.body === "string")
  entries.sort((one, other) => one.at - other.at || one.order - other.order) // entries had no seq then
  return { entries, moved: move(storage, entries.map((entry) => ["outbox", "put", entry]), keys) }
}

export function forgetOlder(prefix, id) { remove(`${prefix}:outbox:${id}`) }

// An older draft belongs to no tab.
export function movedDrafts(storage, prefix) {
  const keys = storedKeys(`${prefix}:draft:`)
  const rows = keys.map((key) => ({ conversation: key.split(":").at(-1), owner: "", turn: 0, text: localStorage.getItem(key) }))
  return move(storage, rows.map((row) => ["drafts", "put", row]), keys)
}

// With a timeout: the page waits for it at its start.
function move(storage, operations, keys) {
  const moved = storage.write(operations).then(() => keys.forEach(remove))
  return Promise.race([moved, tooLate("IndexedDB does not write")])
}

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key))
  } catch (error) {
    console.error(error)
    return null
  }
}

function remove(key) {
  try { localStorage.removeItem(key) } catch (error) { console.error(error) }
}
