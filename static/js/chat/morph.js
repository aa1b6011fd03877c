// Morphing: changes only nodes that differ, and appends to texts that grow. So selection, sideways scroll, focus and a
// pressed button survive while an answer streams. htmx's morph sets whole texts, and a selection in them collapses.

export function morphInto(shown, html) {
  const holder = document.createElement("template")
  holder.innerHTML = html
  morphChildren(shown, holder.content)
}

export function morph(shown, fresh) {
  if (shown.isEqualNode(fresh)) return
  for (const { name } of [...shown.attributes]) if (!fresh.hasAttribute(name)) shown.removeAttribute(name)
  for (const { name, value } of fresh.attributes) if (shown.getAttribute(name) !== value) shown.setAttribute(name, value)
  morphChildren(shown, fresh)
}

function morphChildren(shown, fresh) {
  let at = shown.firstChild
  for (const node of [...fresh.childNodes]) {
    const next = at?.nextSibling ?? null
    if (!at) shown.append(node)
    else if (!areAlike(at, node)) at.replaceWith(node)
    else if (at.nodeType === Node.TEXT_NODE) setText(at, node.data)
    else if (at.localName !== "button") morph(at, node) // its label may show a confirmation right now
    at = next
  }
  while (at) {
    const next = at.nextSibling
    at.remove()
    at = next
  }
}

// A button with another action is replaced: a click meant for the old one must not reach it.
function areAlike(one, other) {
  if (one.nodeType !== other.nodeType || one.nodeName !== other.nodeName) return false
  return one.localName !== "button" || one.dataset.action === other.dataset.action
}

function setText(node, text) {
  const old = node.data
  if (old === text) return
  if (text.startsWith(old)) return node.appendData(text.slice(old.length))
  let same = 0
  while (same < old.length && old[same] === text[same]) same++
  node.replaceData(same, old.length - same, text.slice(same))
}
