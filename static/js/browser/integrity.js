// Checks that HTML arrived as it was sent: middleboxes rewrite it (addresses, scripts, white space). Every element with
// content carries a checksum. If one fails, later answers come in an armour (Base64), and the network is remembered
// (connection/memory.js).

import { contentOf as partOf } from "../connection/feeds.js"

const ARMOUR = /<chat-armour>([A-Za-z0-9+/=\s]*)<\/chat-armour>/

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit += 1) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1
  return n
})

// The CRC-32 of a text's UTF-8, in hexadecimal.
export function checkOf(text) {
  let crc = 0xffffffff
  for (const byte of new TextEncoder().encode(text)) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8)
  return (~crc >>> 0).toString(16).padStart(8, "0")
}

// True if an article, list entry or patch matches its checksum, or has none.
export function isWhole(element) {
  const check = element.dataset?.check ?? element.getAttribute("check")
  if (!check) return true
  try { return check === checkOf(contentOf(element)) } catch { return false } // it lacks its body
}

// Text, link targets, and the source that patches append to.
function contentOf(element) {
  if (element.localName === "li") return element.textContent
  if (element.hasAttribute("at")) return partOf(element)
  if (element.localName === "chat-patch") return [...element.querySelectorAll(":scope > chat-block")].map(partOf).join("")
  const body = element.querySelector(":scope > .body")
  const links = [...body.querySelectorAll(":scope > .block a[href]")].map((link) => link.getAttribute("href"))
  const source = body.querySelector(":scope > .block[data-source]")?.dataset.source ?? ""
  return body.textContent + links.join("") + source
}

// The answer without its armour and any text around that; unchanged if it has none.
export function opened(text) {
  const [, base64] = ARMOUR.exec(text) ?? []
  if (base64 === undefined) return text
  try {
    const bytes = Uint8Array.from(atob(base64.replace(/\s/g, "")), (char) => char.charCodeAt(0))
    return new TextDecoder().decode(bytes)
  } catch { return text } // truncated or altered: the caller refuses an answer without our mark
}
