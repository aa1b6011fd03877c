// Reloads scripts and style sheets that failed to load (a proxy's rate limit, a cut connection), with exponential
// backoff. Not a module: browsers remember that a module failed to load. So a script is reloaded under another address
// (/static/HASH.1/), which the server also serves; it is fetched first, into the browser's cache.
(() => {
  const GRACE = 1500 // ms after all has loaded or failed
  const PATIENCE = 20000 // ms for files that do neither
  const LONGEST_ANSWER = 10000
  const LONGEST_PAUSE = 30000
  const MOST_SILENT = 3 // times that a script loads but does not run, before giving up
  const base = document.currentScript.src.replace(/[^/]+\/js\/watchdog\/[^/]*$/, "") // without the version

  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))
  const backoff = (tries) => Math.min(LONGEST_PAUSE, 500 * 2 ** tries) * (0.75 + 0.5 * Math.random())
  const address = (url, n) => url.replace(/\/static\/([^/.]+)[^/]*\//, `/static/$1.${n}/`)

  // The sign that a script ran: an element that it marks, or a global that it defines. "started": one that began and
  // threw would throw again.
  const hasRun = ({ dataset: { sign, global } }) => {
    if (global) return global in window
    return document.querySelector(sign) !== null || (sign.startsWith("body") && "started" in document.body.dataset)
  }

  // A failed link may have a sheet without rules.
  const isStyled = ({ sheet }) => sheet !== null && sheet.cssRules.length > 0

  // Resolves once the file is in the cache.
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

  // → true if it loaded: the cache may have dropped it
  function add(fresh, old) {
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
      const isLoaded = await add(fresh, old)
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

  function scan() {
    for (const link of document.querySelectorAll("link[rel=stylesheet]")) {
      if (link.href.startsWith(base)) reload(link, () => isStyled(link), "href")
    }
    for (const script of document.querySelectorAll("script:is([data-sign], [data-global])")) {
      reload(script, () => hasRun(script), "src")
    }
  }

  let isDone = false
  const scanOnce = () => {
    if (!isDone) scan()
    isDone = true
  }
  const scanSoon = () => setTimeout(scanOnce, GRACE)
  if (document.readyState === "complete") scanSoon()
  else addEventListener("load", scanSoon)
  setTimeout(scanOnce, PATIENCE)
})()
