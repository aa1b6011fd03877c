// The start prints /first-run#code=…: the code goes into its field and out of the address, where others might read it.

function take() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code")
  if (!code) return
  document.querySelector("input[name=code]").value = code
  history.replaceState(null, "", location.pathname + location.search)
  document.querySelector("input[name=name]").focus()
}

addEventListener("hashchange", take) // the printed address, opened where the page is open already
take()
document.body.dataset.alive = ""
