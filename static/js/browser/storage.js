// What this browser keeps for one person: rows in IndexedDB, because Chromium writes localStorage up to 30 s late. A
// write that has resolved survives a killed browser. Where there is no IndexedDB, or it fails, each call rejects, and
// the caller goes on in memory and says so.

const VERSION = 1
const LIMIT = 2000 // ms for opening and reading: a browser that hangs here must not hold up the page
const STORES = {
  outbox: { keyPath: "seq", autoIncrement: true }, // seq: the order in which messages were written
  drafts: { keyPath: ["conversation", "owner"] },
}

export class Storage {
  #name; #opening = null; #channel = null; #listeners = []

  // name: of the database and of the channel on which this person's tabs speak of it
  constructor(name) {
    this.#name = name
    this.#join()
    addEventListener("pagehide", () => this.#leave()) // an open channel keeps pages out of the browser's cache
    addEventListener("pageshow", (event) => { if (event.persisted) this.#rejoin() })
  }

  // → the rows of a store, in the order of their keys. range: an IDBKeyRange
  async rows(store, range) {
    const reading = this.#transact([store], "readonly", (stores) => [stores(store).getAll(range)])
    const [request] = await Promise.race([reading, tooLate("IndexedDB does not answer")])
    return request.result
  }

  // operations: [store, "put" | "delete", row | key], all or none of them. → the keys
  async write(operations, durability = "strict") {
    const names = [...new Set(operations.map(([store]) => store))]
    if (!names.length) return []
    const requests = await this.#transact(names, "readwrite", (stores) => (
      operations.map(([store, verb, value]) => stores(store)[verb](value))
    ), durability)
    return requests.map((request) => request.result)
  }

  // --- what this person's tabs tell each other of it ---

  // act(message); {type: "missed"} where messages may have passed unheard.
  listen(act) { this.#listeners.push(act) }

  tell(message) { this.#channel?.postMessage(message) }

  #join() {
    if (!window.BroadcastChannel || this.#channel) return
    this.#channel = new BroadcastChannel(`${this.#name}:storage`)
    this.#channel.onmessage = ({ data }) => this.#pass(data)
  }

  #leave() {
    this.#channel?.close()
    this.#channel = null
  }

  #rejoin() {
    this.#join()
    this.#pass({ type: "missed" })
  }

  #pass(message) {
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
      this.#drop(opening) // each browser has an error of its own for a connection that it has lost
      return this.#attempt(this.#open(), names, mode, work, durability)
    }
  }

  #drop(opening) {
    if (this.#opening === opening) this.#opening = null
    opening.then((database) => database.close()).catch(() => {}) // it may be open no more, or never have been
  }

  async #attempt(opening, names, mode, work, durability) {
    const database = await opening
    const transaction = database.transaction(names, mode, { durability })
    const requests = attempted(transaction, work)
    if (mode === "readwrite") transaction.commit?.() // goes through even if the page closes now
    return new Promise((resolve, reject) => {
      transaction.oncomplete = () => resolve(requests)
      transaction.onabort = () => reject(transaction.error ?? new DOMException("aborted", "AbortError"))
    })
  }

  #open() {
    this.#opening ??= Promise.race([this.#opened(), tooLate("IndexedDB does not open")]).catch((error) => {
      this.#opening = null // tried again with the next call
      throw error
    })
    return this.#opening
  }

  #opened() {
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

// What one of them refuses at once must not leave those before it done.
function attempted(transaction, work) {
  try {
    return work((name) => transaction.objectStore(name))
  } catch (error) {
    transaction.abort()
    throw error
  }
}

export const tooLate = (words) => new Promise((_, reject) => {
  setTimeout(() => reject(new DOMException(words, "TimeoutError")), LIMIT)
})
