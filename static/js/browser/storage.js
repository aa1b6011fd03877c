// One person's rows in IndexedDB, because Chromium writes localStorage up to 30 s late: a resolved write survives a
// killed browser. Without IndexedDB, or if it fails, each call rejects; the caller continues in memory and warns.

const VERSION = 1
const TIMEOUT = 2000 // ms for opening and reading: some browsers hang here, and the page waits
const STORES = {
  outbox: { keyPath: "seq", autoIncrement: true }, // seq: the order of writing
  drafts: { keyPath: ["conversation", "owner"] },
}

export class Storage {
  #name; #opening = null; #channel = null; #listeners = []

  // name: of the database, and of the BroadcastChannel of this person's tabs
  constructor(name) {
    this.#name = name
    this.#join()
    addEventListener("pagehide", () => this.#leave()) // an open channel keeps the page out of the back/forward cache
    addEventListener("pageshow", (event) => { if (event.persisted) this.#rejoin() })
  }

  // → the rows of a store, in key order. range: an IDBKeyRange
  async rows(store, range) {
    const reading = this.#transact([store], "readonly", (stores) => [stores(store).getAll(range)])
    const [request] = await Promise.race([reading, tooLate("IndexedDB does not answer")])
    return request.result
  }

  // operations: [store, "put" | "delete", row | key], in one transaction. → the keys
  async write(operations, durability = "strict") {
    const names = [...new Set(operations.map(([store]) => store))]
    if (!names.length) return []
    const requests = await this.#transact(names, "readwrite", (stores) => (
      operations.map(([store, verb, value]) => stores(store)[verb](value))
    ), durability)
    return requests.map((request) => request.result)
  }

  // --- messages between this person's tabs ---

  // act(message). {type: "missed"}: messages may have been missed.
  listen(act) { this.#listeners.push(act) }

  tell(message) { this.#channel?.postMessage(message) }

  #join() {
    if (!window.BroadcastChannel || this.#channel) return
    this.#channel = new BroadcastChannel(`${this.#name}:storage`)
    this.#channel.onmessage = ({ data }) => this.#emit(data)
  }

  #leave() {
    this.#channel?.close()
    this.#channel = null
  }

  #rejoin() {
    this.#join()
    this.#emit({ type: "missed" })
  }

  #emit(message) {
    for (const act of this.#listeners) {
      try { act(message) } catch (error) { console.error(error) }
    }
  }

  // --- IndexedDB ---

  async #transact(names, mode, work, durability) {
    const opening = this.#open()
    try {
      return await this.#attempt(opening, names, mode, work, durability)
    } catch (error) {
      if (["QuotaExceededError", "TimeoutError"].includes(error.name)) throw error
      this.#drop(opening) // a lost connection: browsers differ in the error
      return this.#attempt(this.#open(), names, mode, work, durability)
    }
  }

  #drop(opening) {
    if (this.#opening === opening) this.#opening = null
    opening.then((database) => database.close()).catch(() => {}) // it may be closed, or never have opened
  }

  async #attempt(opening, names, mode, work, durability) {
    const database = await opening
    const transaction = database.transaction(names, mode, { durability })
    const requests = requestsOf(transaction, work)
    if (mode === "readwrite") transaction.commit?.() // completes even if the page closes now
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve(requests)
      transaction.onabort = () => reject(transaction.error ?? new DOMException("aborted", "AbortError"))
    })
  }

  #open() {
    this.#opening ??= Promise.race([this.#connect(), tooLate("IndexedDB does not open")]).catch((error) => {
      this.#opening = null // retried with the next call
      throw error
    })
    return this.#opening
  }

  #connect() {
    return new Promise((resolve, reject) => {
      const request = indexedDB.open(this.#name, VERSION)
      request.onupgradeneeded = () => {
        for (const [name, options] of Object.entries(STORES)) request.result.createObjectStore(name, options)
      }
      request.onerror = () => reject(request.error)
      request.onsuccess = () => {
        const database = request.result
        database.onclose = database.onversionchange = () => {
          database.close()
          this.#opening = null
        }
        resolve(database)
      }
    })
  }
}

// If one operation throws at once, those before it must not be committed.
function requestsOf(transaction, work) {
  try {
    return work((name) => transaction.objectStore(name))
  } catch (error) {
    transaction.abort()
    throw error
  }
}

export const tooLate = (text) => new Promise((_, reject) => {
  setTimeout(() => reject(new DOMException(text, "TimeoutError")), TIMEOUT)
})
