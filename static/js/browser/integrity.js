// Is what arrived what was sent? Boxes on the way rewrite HTML (addresses, scripts, white space). Every element with
// content has a check of it; where one fails, answers come in an armour from then on, and the network is remembered
// (connection/memory.js).

const ARMOUR = /<chat-armour>([A-Za-z0-9+/=\s]*)<\/chat-armour>/

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit += 1) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1
  return n
})

// The CRC-32 of a text's UTF-8, as the server writes it.
export function checkOf(text) {
  let sum = 0xffffffff
  for (const byte of new TextEncoder().encode(text)) sum = TABLE[(sum ^ byte) & 255] ^ (sum >>> 8)
  return (~sum >>> 0).toString(16).padStart(8, "0")
}

// One article, list entry or patch, as it came.
export function isWhole(element) {
  const check = element.dataset?.check ?? element.getAttribute("check")
  if (!check) return true
  try { return check === checkOf(contentOf(element)) } catch { return false } // a part of it is missing
}

// The words, where the links in them lead, and the source that patches append to.
function contentOf(element) {
  if (element.localName === "li") return element.textContent
  if (element.localName === "chat-patch") return words(element.querySelectorAll(":scope > chat-block"))
  const body = element.querySelector(":scope > .body")
  const links = [...body.querySelectorAll(":scope > .block a[href]")].map((link) => link.getAttribute("href"))
  const source = body.querySelector(":scope > .block[data-source]")?.dataset.source ?? ""
  return body.textContent + links.join("") + source
}

const words = (elements) => [...elements].map((element) => element.textContent).join("")

// An answer out of its armour, whatever stands around it; as it is where it has none.
export function opened(text) {
  const [, letters] = ARMOUR.exec(text) ?? []
  if (letters === undefined) return text
  try {
    const bytes = Uint8Array.from(atob(letters.replace(/\s/g, "")), (letter) => letter.charCodeAt(0))
    return new TextDecoder().decode(bytes)
  } catch { return text } // cut or altered: what has no mark is refused where it is asked for
}
