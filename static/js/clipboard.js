// Copying by a button, which says that it was done.

export async function copy(button, text, copied) {
  try { await navigator.clipboard.writeText(text) } catch { copyBySelection(text) }
  const label = button.textContent
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
