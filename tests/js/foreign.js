// What tests/test_foreign.py asks of the shipped modules, in QuickJS: what a message's POST makes of an answer.

import { Posts } from "../../static/js/connection/posts.js"

let outcome = null

// A message is sent, and this is what comes back.
export function send(status, text) {
  outcome = null
  const answer = { status, text, header: () => null, isRedirect: false }
  const world = { session: { token: "" }, wall: () => 0, ask: async () => answer }
  const posts = new Posts({ create_url: "/c", messages_url: "/c/{id}/messages" }, world, { renew: async () => "signed-out" }, () => {})
  posts.send({ id: "m", body: "x", conversation: "c" }).then((found) => { outcome = found })
}

export const found = () => outcome
