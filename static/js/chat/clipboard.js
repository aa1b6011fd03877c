// Copy buttons, with confirmation in the label.

const labels = new WeakMap() // button → its usual label

export async function copy(button, text, copied) {
  try { await navigator.clipboard.writeText(text) } catch { copyBySelection(text) }
  button.focus({ preventScroll: true }) // the fallback moves the focus
  const label = labels.get(button) ?? button.textContent
  labels.set(button, label)
  button.textContent = copied || label
  setTimeout(() => { button.textContent = label }, 1500)
}

// The clipboard API is missing on plain http hosts.
function copyBySelection(text) {
  const field = Object.assign(document.createElement("textarea"), { value: text, className: "visually-hidden" })
  document.body.append(field)
  field.select()
  document.execCommand("copy")
  field.remove()
}
