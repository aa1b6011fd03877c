// Copying by a button, which says that it was done.

const labels = new WeakMap() // button → its own label, also while it says that it was done

export async function copy(button, text, copied) {
  try { await navigator.clipboard.writeText(text) } catch { copyBySelection(text) }
  button.focus({ preventScroll: true }) // a selection takes it away
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
