// The copy buttons of code blocks on the knowledge pages.

import { copy } from "../chat/clipboard.js"

const article = document.querySelector("article[data-copied]")
article?.addEventListener("click", ({ target }) => {
  const button = target.closest?.("[data-action=copy-code]")
  if (button) copy(button, button.closest("figure")?.querySelector("code")?.textContent ?? "", article.dataset.copied)
})
document.body.dataset.alive = ""
