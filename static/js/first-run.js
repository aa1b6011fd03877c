// The start prints /first-run#code=…: moves the code into its field, and out of the visible address.

function move() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code")
  if (!code) return
  document.querySelector("input[name=code]").value = code
  history.replaceState(null, "", location.pathname + location.search)
  document.querySelector("input[name=name]").focus()
}

addEventListener("hashchange", move) // the printed address, opened while the page is open
move()
document.body.dataset.alive = ""
