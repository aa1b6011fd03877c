// A text that scripts show, from <template id="words">, with {n} replaced; "" if missing.
export function words(key, n) {
  const text = document.getElementById("words")?.content.querySelector(`[data-word="${CSS.escape(key)}"]`)?.textContent
  return text === undefined ? "" : text.replace("{n}", () => n)
}
