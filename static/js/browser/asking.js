// HTTP requests of the page, with a timeout, and the session's CSRF token.

// fields: [name, value] pairs, the query of a GET or the form of a POST; within: timeout in ms, after which it rejects.
// → {status, text, header(name), isRedirect}. Redirects are not followed: our server sends none here.
export async function ask(method, url, fields, { within }) {
  const form = new URLSearchParams(fields)
  const options = method === "GET" ? {} : { body: form, headers: { Accept: "application/json" } }
  const address = method === "GET" ? `${url}?${form}` : url
  const { response, text } = await fetchWithin(within, address, { method, redirect: "manual", ...options })
  const { status, type, headers } = response
  return { status, text, header: (name) => headers.get(name), isRedirect: type === "opaqueredirect" }
}

async function fetchWithin(ms, url, options = {}) {
  const abort = new AbortController()
  const timer = setTimeout(() => abort.abort(), ms)
  try {
    const response = await fetch(url, { credentials: "same-origin", cache: "no-store", ...options, signal: abort.signal })
    return { response, text: await response.text() }
  } finally {
    clearTimeout(timer)
  }
}

// What the form says is wrong.
function wordsOf(html) {
  const page = new DOMParser().parseFromString(html, "text/html")
  const words = page.querySelector(".error, .alert")?.textContent.trim()
  if (!words) throw new Error("not our sign-in page")
  return words
}

const tokenOf = (page) => page.querySelector('meta[name="csrf-token"], input[name=csrf_token]')

export const session = (signIn) => ({
  get token() { return document.querySelector('meta[name="csrf-token"]')?.content ?? "" },

  // Reads the token of a new session. → "renewed", "signed-out" (also if another person is signed in), "foreign-page"
  async refresh() {
    // The one request that follows a redirect. Of a conversation's page another person would get a 404.
    const { response, text } = await fetchWithin(10000, document.body.dataset.base ?? location.href)
    const isSignIn = response.redirected && new URL(response.url).pathname === signIn
    const page = new DOMParser().parseFromString(text, "text/html")
    const token = page.querySelector('meta[name="csrf-token"]')?.content
    if (isSignIn || (token && page.body.dataset.person !== document.body.dataset.person)) return "signed-out"
    if (!token) return "foreign-page"
    document.querySelector('meta[name="csrf-token"]').content = token
    for (const field of document.querySelectorAll("input[name=csrf_token]")) field.value = token
    return "renewed"
  },

  // → "", or what is wrong, in words; null: another person signed in, whose page this is not: it is left.
  async signIn(email, password) {
    const { text } = await fetchWithin(10000, signIn)
    const field = tokenOf(new DOMParser().parseFromString(text, "text/html"))
    if (!field) throw new Error("not our sign-in page")
    if (field.localName === "input") { // else another tab has signed in meanwhile
      const body = new URLSearchParams({ csrf_token: field.value, email, password })
      const headers = { Accept: "text/html" }
      const { response, text: said } = await fetchWithin(30000, signIn, { method: "POST", body, headers, redirect: "manual" })
      if (response.type !== "opaqueredirect") return wordsOf(said)
    }
    const outcome = await this.refresh()
    if (outcome === "renewed") return ""
    if (outcome === "foreign-page") throw new Error("not our page")
    location.assign(document.body.dataset.base ?? "/")
    return null
  },
})
