// What tests/test_foreign.py asks of the shipped modules, in QuickJS: what a message's POST makes of an answer. The page
// and the network are only what posts.js looks at.

import { Posts } from "../../static/js/transports/posts.js"

let answer = null

globalThis.document = { querySelector: () => null }
globalThis.setTimeout = () => 0
globalThis.clearTimeout = () => {}
globalThis.URLSearchParams = class {}
globalThis.AbortController = class {
  abort() {}
}
globalThis.fetch = async () => answer

const posts = new Posts({ create_url: "/c", messages_url: "/c/{id}/messages" }, () => {})
let outcome = null

// A message is sent, and this is what comes back.
export function send(status, text) {
  outcome = null
  answer = { status, ok: status < 300, type: "basic", headers: new Map(), text: async () => text }
  posts.send({ id: "m", body: "x", conversation: "c" }).then((found) => { outcome = found })
}

export const found = () => outcome
