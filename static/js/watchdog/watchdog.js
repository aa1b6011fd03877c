// Sees to it that the page comes alive. A file that did not load (a proxy's rate limit, a cut line) is asked for again,
// with longer and longer pauses. No module, because browsers remember of a module that it could not be loaded: so it is
// loaded under another address (/static/HASH.1/), which the server knows. It is fetched before, into the browser's cache.
(() => {
  const GRACE = 1500 // ms after all has loaded or failed
  const PATIENCE = 20000 // for what does neither
  const LONGEST_ANSWER = 10000
  const LONGEST_PAUSE = 30000
  const MOST_SILENT = 3 // times that a script loads and does not run: asking for it again will not help
  const base = document.currentScript.src.replace(/[^/]+\/js\/watchdog\/[^/]*$/, "") // of all versions

  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
  const backoff = (tries) => Math.min(LONGEST_PAUSE, 500 * 2 ** tries) * (0.75 + 0.5 * Math.random())
  const address = (url, n) => url.replace(/\/static\/([^/.]+)[^/]*\//, `/static/$1.${n}/`)

  // What tells that a script ran: an element that it marks, or a name that it defines. One that began, and failed on the
  // way, would do so again.
  const hasRun = ({ dataset: { sign, global } }) => {
    if (global) return global in window
    return document.querySelector(sign) !== null || (sign.startsWith("body") && "started" in document.body.dataset)
  }

  // One that failed has a sheet all the same, without a rule in it.
  const isStyled = ({ sheet }) => sheet !== null && sheet.cssRules.length > 0

  // It is in the cache, however often it has to be asked for.
  async function load(url) {
    for (let tries = 0; ; tries += 1) {
      const { ok, advice } = await ask(url)
      if (ok) return
      await pause(Math.max(advice, backoff(tries)))
    }
  }

  async function ask(url) {
    try {
      const response = await fetch(url, { credentials: "same-origin", signal: AbortSignal.timeout(LONGEST_ANSWER) })
      const isOurs = response.ok && !response.redirected && !(response.headers.get("Content-Type") ?? "").includes("html")
      const seconds = Number(response.headers.get("Retry-After")) || 0
      await response.text()
      return { ok: isOurs, advice: Math.min(LONGEST_PAUSE, 1000 * seconds) }
    } catch { return { ok: false, advice: 0 } }
  }

  // → whether it loaded; it may find nothing in the cache after all
  function put(fresh, old) {
    return new Promise((resolve) => {
      fresh.onload = () => resolve(true)
      fresh.onerror = () => resolve(false)
      if (old.localName === "link") old.after(fresh)
      else document.head.append(fresh)
    })
  }

  async function reload(old, isThere, attribute) {
    const { type } = old
    let silent = 0
    for (let n = 1; !isThere() && silent < MOST_SILENT; n += 1) {
      const url = address(old[attribute], n)
      await load(url)
      if (isThere()) return
      const fresh = document.createElement(old.localName)
      Object.assign(fresh, type ? { type } : {}, { rel: "stylesheet", [attribute]: url })
      const isLoaded = await put(fresh, old)
      if (old.localName === "link") {
        ;(isLoaded ? old : fresh).remove()
        if (isLoaded) return
      } else if (isLoaded) {
        await pause(GRACE)
        silent += 1
      }
      if (!isThere()) await pause(backoff(n))
    }
  }

  function look() {
    for (const link of document.querySelectorAll("link[rel=stylesheet]")) {
      if (link.href.startsWith(base)) reload(link, () => isStyled(link), "href")
    }
    for (const script of document.querySelectorAll("script:is([data-sign], [data-global])")) {
      reload(script, () => hasRun(script), "src")
    }
  }

  let hasLooked = false
  const lookOnce = () => {
    if (!hasLooked) look()
    hasLooked = true
  }
  const lookSoon = () => setTimeout(lookOnce, GRACE)
  if (document.readyState === "complete") lookSoon()
  else addEventListener("load", lookSoon)
  setTimeout(lookOnce, PATIENCE)
})()
