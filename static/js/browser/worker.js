// The service worker: caches the static files and the last conversations, so that they open offline. The server
// prepends `const SETTINGS = {…}` (chatapp/staticfiles.py). It answers only GETs of pages and files; /ws, /changes and
// every POST pass untouched.

const { instance, version, base, files, fallback } = SETTINGS
const PREFIX = `chatapp:${instance}:`
const FILES = `${PREFIX}files:${version}`
const PAGES = `${PREFIX}pages:`
const MARK = `<meta name="chat-instance" content="${instance}">` // in each of our pages, and in no captive portal's
const CONVERSATION = /^c\/[0-9a-f-]{36}$/
const WAIT = 3000 // ms for the network, if there is a copy
const MOST_PAGES = 20
const SERVER_ERROR = 500 // and above
let purges = 0 // one more at each deletion: a page requested before it must not be stored after it
let requests = 0
const stored = new Map() // url → number of the newest request that was stored: one that is overtaken is not

addEventListener("install", (event) => event.waitUntil(install()))
addEventListener("activate", (event) => event.waitUntil(activate()))
addEventListener("fetch", onFetch)
addEventListener("message", (event) => {
  const { type, url, armour } = event.data
  if (type === "empty") event.waitUntil(purge())
  else if (type === "keep" && CONVERSATION.test(pathOf(url))) event.waitUntil(keep(url, armour).catch(() => {}))
  else if (type === "review") event.waitUntil(review(new Set(event.data.listed)).catch(() => {}))
})

const pathOf = (url) => url.startsWith(location.origin + base) ? new URL(url).pathname.slice(base.length) : null

// All or nothing. A captive portal answers every request with its page: refuse that.
async function install() {
  const cache = await caches.open(FILES)
  await Promise.all([...files, fallback].map(async (url) => {
    const response = await fetch(url)
    const isHtml = (response.headers.get("Content-Type") ?? "").includes("html")
    const isOurs = url === fallback ? (await response.clone().text()).includes(MARK) : !isHtml
    if (!response.ok || response.redirected || !isOurs) throw new Error(`not the product's: ${url}`)
    await cache.put(url, response)
  }))
  await skipWaiting()
}

// A new version: replaces the files and pages of the old one.
async function activate() {
  const urls = []
  for (const name of await cachesOf(PREFIX)) {
    if (name.includes(`:${version}`)) continue
    if (name.startsWith(PAGES)) urls.push(...(await (await caches.open(name)).keys()).map((request) => request.url))
    await caches.delete(name)
  }
  await clients.claim()
  for (const url of urls) await keep(url).catch(() => {})
}

function onFetch(event) {
  const { request } = event
  const path = pathOf(request.url)
  if (path === "sign-out" || path === "sign-in") event.waitUntil(purge()) // not answered here: only delete
  else if (path === null || request.method !== "GET") return
  else if (path.startsWith("static/")) event.respondWith(onFile(request))
  else if (request.mode === "navigate") event.respondWith(onPage(request, path))
}

async function onFile(request) {
  return await caches.match(request, { cacheName: FILES }) ?? fetch(request)
}

// Network first; the copy if that fails, is slow, or answers with a foreign page.
async function onPage(request, path) {
  const isKept = CONVERSATION.test(path) && !new URL(request.url).search
  const copy = isKept ? await find(request.url) : null
  const last = path === "" ? await newest() : null
  try {
    const answer = load(request, isKept, copy ?? last)
    answer.catch(() => {})
    return await (copy || last ? Promise.race([answer, timeout()]) : answer)
  } catch {
    if (last) return Response.redirect(last)
    return copy ? dated(copy) : await caches.match(fallback, { cacheName: FILES }) ?? Response.error()
  }
}

async function load(request, isKept, hasCopy) {
  const before = begin()
  const response = await fetch(request)
  // To our sign-in page or a captive portal's? Following a foreign redirect fails here.
  if (response.type === "opaqueredirect") {
    if (isKept && hasCopy && !(await (await follow(request.url)).text()).includes(MARK)) throw new Error("foreign")
    return response
  }
  const text = await response.clone().text()
  const isOurs = text.includes(MARK) && response.status < SERVER_ERROR
  if (!isOurs && hasCopy) throw new Error("foreign")
  if (isOurs && isKept) await store(request.url, response, text, before)
  return response
}

const follow = (url) => fetch(url, { credentials: "same-origin", cache: "no-store", headers: { Accept: "text/html" } })

const timeout = () => new Promise((_, reject) => setTimeout(() => reject(new Error("too slow")), WAIT))

// armour: true on networks that rewrite HTML (browser/integrity.js)
async function keep(url, armour = false) {
  const before = begin()
  const response = await follow(armour ? `${url}?armour=1` : url)
  const text = opened(await response.clone().text())
  if (text.includes(MARK) && !response.redirected) await store(url, response, text, before)
}

function opened(text) {
  const [, base64] = /<chat-armour>([A-Za-z0-9+/=\s]*)<\/chat-armour>/.exec(text) ?? []
  if (base64 === undefined) return text
  const bytes = Uint8Array.from(atob(base64.replace(/\s/g, "")), (char) => char.charCodeAt(0))
  return new TextDecoder().decode(bytes)
}

// Deletes the kept pages of conversations that are there no longer for this person. A listed one is.
async function review(listed) {
  for (const name of await cachesOf(PAGES)) {
    const cache = await caches.open(name)
    for (const { url } of await cache.keys()) {
      if (listed.has(url.slice(-36))) continue
      const response = await follow(url)
      if (response.status === 404 && (await response.text()).includes(MARK)) await cache.delete(url)
    }
  }
}

const begin = () => ({ purges, request: ++requests })

// Stores a page under its person, and deletes the pages of others. before: of begin(), at its request
async function store(url, response, text, before) {
  if (before.request < (stored.get(url) ?? 0) || !(response.ok || response.status === 404)) return
  stored.set(url, before.request)
  const person = /<body [^>]*data-person="([0-9a-f-]{36})"/.exec(text)?.[1]
  const name = `${PAGES}${version}:${person}`
  for (const other of await cachesOf(PAGES)) {
    if (person && other !== name) await caches.delete(other)
    else await (await caches.open(other)).delete(url) // also where it is gone: that page names nobody
  }
  if (person && response.ok) {
    const cache = await caches.open(name)
    const headers = new Headers(response.headers)
    for (const key of ["Content-Encoding", "Content-Length", "Vary"]) headers.delete(key)
    headers.set("X-Kept-At", new Date().toISOString())
    await cache.put(url, new Response(text, { headers }))
    const kept = await cache.keys()
    for (const oldest of kept.slice(0, -MOST_PAGES)) await cache.delete(oldest)
  }
  if (before.purges !== purges) await purge()
}

const cachesOf = async (prefix) => (await caches.keys()).filter((name) => name.startsWith(prefix))

async function purge() {
  purges += 1
  for (const name of await cachesOf(PAGES)) await caches.delete(name)
}

async function find(url) {
  for (const name of await cachesOf(PAGES)) {
    const found = await (await caches.open(name)).match(url)
    if (found) return found
  }
  return null
}

// The page stored last: keys are in insertion order.
async function newest() {
  const [name] = await cachesOf(PAGES)
  return name ? (await (await caches.open(name)).keys()).at(-1)?.url ?? null : null
}

// Adds to the copy the time when it was stored.
async function dated(copy) {
  const text = await copy.text()
  const at = copy.headers.get("X-Kept-At")
  return new Response(text.replace("<body ", `<body data-kept-at="${at}" `), { headers: copy.headers })
}
