// A text that scripts show, from <template id="words"> (or, on /connection, id="record-words"), with {n} replaced; "" if
// missing.
export function words(key, n) {
  for (const id of ["words", "record-words"]) {
    const found = document.getElementById(id)?.content.querySelector(`[data-word="${CSS.escape(key)}"]`)
    if (found) return found.textContent.replace("{n}", () => n)
  }
  return ""
}
