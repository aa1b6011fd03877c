// HTTP by the page: one request within a time, and the session's token.

// fields: [name, value] pairs, as the query of a GET or the form of a POST. → {status, text, header(name), isRedirect};
// rejects where nothing came within so many ms. Redirects are not followed: ours are none.
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

  // → "renewed", "signed-out" (also where somebody else is signed in now), "foreign-page"
  async renew() {
    const { response, text } = await fetchWithin(10000, location.href) // the one request that follows a redirect
    const isSignIn = response.redirected && new URL(response.url).pathname === signIn
    const page = new DOMParser().parseFromString(text, "text/html")
    const fresh = page.querySelector('meta[name="csrf-token"]')?.content
    if (isSignIn || (fresh && page.body.dataset.person !== document.body.dataset.person)) return "signed-out"
    if (!fresh) return "foreign-page"
    document.querySelector('meta[name="csrf-token"]').content = fresh
    for (const field of document.querySelectorAll("input[name=csrf_token]")) field.value = fresh
    return "renewed"
  },
})
