// A page of an older protocol loads itself again once the server speaks a newer one: connected, at a quiet moment, with
// nothing that only this page has, and only where the new page can be had.

import { isConnected } from "../connection/states.js"
import { onUse } from "./page-events.js"

const LOOK_EVERY = 5000 // ms
const AGAIN = 600000 // ms; something on the way may go on serving the old page
const QUIET = 60000 // ms without use, of a visible page

// own: the protocol that this page speaks; the server's is body[data-protocol], see connection.js
export function followVersion(own, isAwaiting) {
  const { dataset } = document.body
  let usedAt = performance.now()
  onUse(() => { usedAt = performance.now() })
  const isInUse = () => !document.hidden && (
    performance.now() - usedAt < QUIET || !getSelection().isCollapsed || document.querySelector("dialog[open]") !== null
  )
  const mayLeave = () => Number(dataset.protocol) > own && isConnected(dataset.connection) && !isInUse() && !isAwaiting()
    && document.getElementById("unkept")?.hidden !== false
  const look = async () => {
    const isThere = mayLeave() ? await protocolOf(location.href).catch(() => 0) > own : null // null: not asked
    if (isThere && mayLeave()) location.reload()
    setTimeout(look, isThere === false ? AGAIN : LOOK_EVERY)
  }
  setTimeout(look, LOOK_EVERY)
}

async function protocolOf(url) {
  const page = new DOMParser().parseFromString(await (await fetch(url, { cache: "no-store" })).text(), "text/html")
  return JSON.parse(page.querySelector('meta[name="chat-config"]').content).protocol
}
