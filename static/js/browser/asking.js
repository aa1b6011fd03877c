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

export const session = (signIn) => ({
  get token() { return document.querySelector('meta[name="csrf-token"]')?.content ?? "" },

  // → "renewed", "signed-out" (also if another person is signed in now), "foreign-page"
  async renew() {
    const { response, text } = await fetchWithin(10000, location.href) // the one request that follows a redirect
    const isSignIn = response.redirected && new URL(response.url).pathname === signIn
    const page = new DOMParser().parseFromString(text, "text/html")
    const token = page.querySelector('meta[name="csrf-token"]')?.content
    if (isSignIn || (token && page.body.dataset.person !== document.body.dataset.person)) return "signed-out"
    if (!token) return "foreign-page"
    document.querySelector('meta[name="csrf-token"]').content = token
    for (const field of document.querySelectorAll("input[name=csrf_token]")) field.value = token
    return "renewed"
  },
})
