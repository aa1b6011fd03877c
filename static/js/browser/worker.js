// The service worker: keeps the product's files and the last conversations on this device, so that they open without a
// network. The server puts `const SETTINGS = {…}` before it (chatapp/offline.py). Nothing but GETs of pages and files is
// answered here; /ws, /changes and whatever is sent pass by untouched.

const { instance, version, base, files, fallback } = SETTINGS
const PREFIX = `chatapp:${instance}:`
const FILES = `${PREFIX}files:${version}`
const PAGES = `${PREFIX}pages:`
const MARK = `<meta name="chat-instance" content="${instance}">` // in every page of ours, and in no portal's
const CONVERSATION = /^c\/[0-9a-f-]{36}$/
const PATIENCE = 3000 // for the network, where there is a copy
const MOST_PAGES = 20
let emptied = 0 // how often: what was asked for before must not be kept after

addEventListener("install", (event) => event.waitUntil(install()))
addEventListener("activate", (event) => event.waitUntil(activate()))
addEventListener("fetch", onFetch)
addEventListener("message", (event) => {
  const { type, url, armour } = event.data
  if (type === "empty") event.waitUntil(empty())
  else if (type === "keep" && CONVERSATION.test(pathOf(url))) event.waitUntil(keep(url, armour).catch(() => {}))
})

const pathOf = (url) => url.startsWith(location.origin + base) ? new URL(url).pathname.slice(base.length) : null

// All or nothing. A portal answers everything with its own page: that is no file of ours.
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

// Another version of the product: its files and pages take the place of the old ones.
async function activate() {
  const urls = []
  for (const name of await storesOf(PREFIX)) {
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
  if (path === "sign-out" || path === "sign-in") event.waitUntil(empty()) // seen, not answered: nobody is signed in
  else if (path === null || request.method !== "GET") return
  else if (path.startsWith("static/")) event.respondWith(file(request))
  else if (request.mode === "navigate") event.respondWith(page(request, path))
}

async function file(request) {
  return await caches.match(request, { cacheName: FILES }) ?? fetch(request)
}

// The network first; the copy where it fails, is slow, or where something else answers.
async function page(request, path) {
  const isKept = CONVERSATION.test(path) && !new URL(request.url).search
  const copy = isKept ? await find(request.url) : null
  const last = path === "" ? await newest() : null
  try {
    const answer = ask(request, isKept, copy ?? last)
    answer.catch(() => {})
    return await (copy || last ? Promise.race([answer, tooLate()]) : answer)
  } catch {
    if (last) return Response.redirect(last)
    return copy ? marked(copy) : await caches.match(fallback, { cacheName: FILES }) ?? Response.error()
  }
}

async function ask(request, isKept, hasCopy) {
  const before = emptied
  const response = await fetch(request)
  // To our sign-in page, or to a portal's? A foreign one cannot be followed from here: that fails.
  if (response.type === "opaqueredirect") {
    if (isKept && hasCopy && !(await (await follow(request.url)).text()).includes(MARK)) throw new Error("foreign")
    return response
  }
  const text = await response.clone().text()
  const isOurs = text.includes(MARK) && response.status < 500
  if (!isOurs && hasCopy) throw new Error("foreign")
  if (isOurs && isKept) await store(request.url, response, text, before)
  return response
}

const follow = (url) => fetch(url, { credentials: "same-origin", cache: "no-store", headers: { Accept: "text/html" } })

const tooLate = () => new Promise((_, reject) => setTimeout(() => reject(new Error("too slow")), PATIENCE))

// armour: something on the way rewrites HTML (browser/integrity.js).
async function keep(url, armour = false) {
  const before = emptied
  const response = await follow(armour ? `${url}?armour=1` : url)
  const text = opened(await response.clone().text())
  if (text.includes(MARK) && !response.redirected) await store(url, response, text, before)
}

function opened(text) {
  const [, letters] = /<chat-armour>([A-Za-z0-9+/=\s]*)<\/chat-armour>/.exec(text) ?? []
  if (letters === undefined) return text
  const bytes = Uint8Array.from(atob(letters.replace(/\s/g, "")), (letter) => letter.charCodeAt(0))
  return new TextDecoder().decode(bytes)
}

// Under the person's name; another person's pages go.
async function store(url, response, text, before) {
  const person = /<body [^>]*data-person="([0-9a-f-]{36})"/.exec(text)?.[1]
  const name = `${PAGES}${version}:${person}`
  for (const other of await storesOf(PAGES)) if (person && other !== name) await caches.delete(other)
  const cache = await caches.open(name)
  await cache.delete(url)
  if (person && response.ok) {
    const headers = new Headers(response.headers)
    for (const gone of ["Content-Encoding", "Content-Length", "Vary"]) headers.delete(gone)
    headers.set("X-Kept-At", new Date().toISOString())
    await cache.put(url, new Response(text, { headers }))
    const kept = await cache.keys()
    for (const oldest of kept.slice(0, Math.max(0, kept.length - MOST_PAGES))) await cache.delete(oldest)
  }
  if (before !== emptied) await empty()
}

const storesOf = async (prefix) => (await caches.keys()).filter((name) => name.startsWith(prefix))

async function empty() {
  emptied += 1
  for (const name of await storesOf(PAGES)) await caches.delete(name)
}

async function find(url) {
  for (const name of await storesOf(PAGES)) {
    const found = await (await caches.open(name)).match(url)
    if (found) return found
  }
  return null
}

// The page that was kept last: keys come in the order in which they were put.
async function newest() {
  const [name] = await storesOf(PAGES)
  return name ? (await (await caches.open(name)).keys()).at(-1)?.url ?? null : null
}

// The copy says of itself that it is one, and from when.
async function marked(copy) {
  const text = await copy.text()
  const at = copy.headers.get("X-Kept-At")
  return new Response(text.replace("<body ", `<body data-kept-at="${at}" `), { headers: copy.headers })
}
