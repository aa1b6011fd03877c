// Starts the parts of the page and connects them. Each also works without the others.

import { states } from "./brought.js"
import { isWhole, opened } from "./browser/integrity.js"
import { Reports } from "./browser/reports.js"
import { uuid } from "./browser/uuid.js"
import { pageWorld } from "./browser/world.js"
import { copy } from "./chat/clipboard.js"
import { Composer, focusComposer } from "./chat/composer.js"
import { Outbox } from "./connection/outbox.js"
import { Posts, advice } from "./connection/posts.js"
import { ENDED, isConnected } from "./connection/states.js"
import { ConversationView } from "./chat/conversation.js"
import { readOffline } from "./browser/offline.js"
import { guardOlderEntries } from "./chat/older-entries.js"
import { announce } from "./chat/announcer.js"
import { words } from "./chat/words.js"
import { connectionFor } from "./browser/sharing.js"
import { SignIn } from "./chat/sign-in.js"
import { StatusView } from "./chat/status.js"
import { Drafts, NEW } from "./chat/drafts.js"
import { forgetOlder, movedEntries } from "./browser/older.js"
import { Storage } from "./browser/storage.js"
import { followVersion } from "./browser/version.js"
import { noteUnkept } from "./chat/unkept.js"

const PAUSE = 300 // ms between pages of older messages, tripled after each failure
const LONGEST_PAUSE = 60000

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? ""
const byId = (id) => document.getElementById(id)
const body = document.body
const isUnsaved = () => "unsaved" in body.dataset

// parts: receives the composer, which must stand aside if the rest fails
async function start(parts) {
  const config = JSON.parse(meta("chat-config"))
  const { instance, person } = body.dataset
  const prefix = `${instance}:${person}`
  const world = pageWorld(prefix, config)
  const connection = connectionFor(prefix, config, states, world)
  connection.reports = new Reports(prefix, world.id, config.events_url, () => connection.mayAsk)
  connection.reports.onEnd = () => connection.leave()
  const storage = new Storage(`chatapp:${prefix}`)
  const older = { take: () => movedEntries(storage, prefix), forget: (id) => forgetOlder(prefix, id) }
  const outbox = new Outbox(world, storage, older, (entry) => connection.deliver(entry))
  outbox.onUnkept = noteUnkept
  const composer = parts.composer = guard(() => new Composer(new Drafts(storage, prefix), (text, beside) => send(outbox, text, beside)))
  await outbox.load()
  if (isUnsaved()) body.dataset.conversation = outbox.unmade ?? body.dataset.conversation
  const { conversation } = body.dataset
  await openDraft(composer, outbox, conversation)
  const view = new ConversationView(conversation, person, `${prefix}:place:${conversation}`)
  connection.view = view
  if (view.isAltered) connection.rewriters.note()
  connection.outbox = outbox
  guard(() => new StatusView(connection, config))

  outbox.onChange = (entry, change, reason, advice) => {
    const isMade = change === "sent" && entry.create && entry.conversation === conversation
    const moving = isMade ? composer?.moveTo(conversation) : null
    if (isMade) adopt(connection, conversation, config)
    if (["stored", "sent"].includes(change) && entry.conversation === conversation) composer?.confirm(entry)
    view.onOutbox(entry, change, reason, advice)
    const isLost = entry.failed?.code === "gone" && entry.conversation !== conversation // its page no longer exists
    if (isLost && ["added", "failed"].includes(change)) outbox.moveToDrafts(entry, NEW)
    if (change === "added" && ["reconnecting", "error"].includes(connection.record.status)) connection.retry()
    connection.dispatch({ type: "queue", queued: outbox.size })
    return moving
  }
  guard(() => new SignIn(connection, world.session, () => composer?.text ?? ""))
  document.addEventListener("connection:changed", ({ detail }) => {
    outbox.setOpen(isConnected(detail.status))
    composer?.setEnabled(detail.status !== "disconnected" && detail.reason !== "refused")
  })
  const posts = new Posts(config, world, connection.access, (event) => connection.dispatch(event))
  const act = actor(posts, config)
  view.onGone = (feed) => onGone(feed, outbox, composer, posts, config)

  connection.follow("list", Number(byId("conversations")?.dataset.cursor) || 0)
  if (conversation && !isUnsaved()) {
    connection.follow(conversation, Number(byId("messages")?.dataset.cursor) || 0)
  }
  guard(() => outbox.show())
  guard(() => listenToButtons(outbox, act, composer))
  guard(() => loadOlder(view, config, connection.rewriters))
  view.onListCut = guard(() => guardOlderEntries(connection.rewriters, () => view.know("list"))) ?? view.onListCut
  guard(() => listenToDialogs(act))
  view.onListRemoved = guard(() => readOffline(config, () => view.isAwaiting(), connection.rewriters)) ?? view.onListRemoved
  guard(() => followVersion(config.protocol, () => view.isAwaiting()))
  connection.start()
  // The click that created a new conversation took the focus.
  if (document.activeElement === body && isEmpty()) focusComposer()
}

// No message yet. (Older browsers do not know :has().)
function isEmpty() {
  const messages = byId("messages")
  return messages !== null && !messages.querySelector("article")
}

// An unsaved page gets a new conversation id at each load, so its draft is stored under NEW. The draft also remains if
// the page was reloaded before the acknowledgement of its first message.
async function openDraft(composer, outbox, conversation) {
  const isUnmade = () => outbox.unmade === conversation
  const isNew = isUnsaved()
  await composer?.open(isNew ? NEW : conversation, () => isUnmade() || isEmpty())
  if (!isNew && isUnmade() && composer?.text) composer.put(composer.text)
}

function send(outbox, text, beside) {
  const { conversation, gone } = body.dataset
  if (gone !== undefined) return document.querySelector("#gone [data-action=go-on]")?.click()
  return outbox.add(uuid(), conversation, text, { create: isUnsaved(), beside })
}

// The first message created the conversation: this is its page from now on.
function adopt(connection, conversation, config) {
  if (!isUnsaved()) return
  delete body.dataset.unsaved
  history.replaceState(history.state, "", pageUrl(config, conversation))
  connection.follow(conversation, 0)
}

const pageUrl = (config, id) => config.messages_url.replace("{id}", id).replace(/\/messages$/, "")

// The conversation was deleted. Leaves the page only if it was deleted here and no text would be lost.
function onGone(feed, outbox, composer, posts, config) {
  outbox.failAll(feed, "gone")
  const texts = () => [...outbox.of(feed).map((entry) => entry.body), composer?.text].filter((text) => text?.trim())
  if ("deleting" in body.dataset && texts().length === 0) return location.assign(body.dataset.base ?? "/")
  body.dataset.gone = ""
  byId("people")?.remove() // it leads nowhere now
  composer?.moveTo(NEW).catch((error) => console.error(error)) // the next new conversation shows it
  const note = byId("gone")
  if (!note) return
  note.hidden = false
  const id = uuid() // the same at each press, so only one conversation is created
  note.querySelector("[data-action=go-on]").addEventListener("click", async ({ target }) => {
    target.disabled = true
    const problem = note.querySelector("[data-slot=problem]")
    problem.textContent = await goOn(id, feed, texts, { outbox, composer, posts, config })
    target.disabled = false
  })
}

// Moves all unsent text to a new conversation, and leaves the page once it is stored there. → an error message or ""
async function goOn(id, feed, texts, { outbox, composer, posts, config }) {
  const outcome = await posts.act(config.create_url, { id })
  if (!outcome.ok) return outcome.words || words("not-done")
  const text = texts().join("\n\n")
  try {
    if (text) await outbox.handOver(feed, (ends) => composer.takeOver(text, ends))
  } catch (error) {
    console.error("not moved", error)
    return words("not-moved")
  }
  location.assign(pageUrl(config, id))
  return ""
}

// act(button, action, fields) → an error message or "". The change itself arrives by the feed.
function actor(posts, config) {
  return async (button, action, fields = {}) => {
    const hadFocus = document.activeElement === button
    button.disabled = true
    const url = config.messages_url.replace("{id}", body.dataset.conversation).replace(/messages$/, action)
    const outcome = await posts.act(url, fields)
    button.disabled = false
    if (hadFocus) button.isConnected ? button.focus() : focusComposer()
    if (outcome.ok) return ""
    return outcome.words || words(ENDED.includes(outcome.retry) ? `reason-${outcome.retry}` : "not-done")
  }
}

function listenToButtons(outbox, act, composer) {
  const ask = async (button, action, fields) => {
    const problem = await act(button, action, fields)
    const state = button.parentElement?.querySelector(".state")
    if (!problem || !state) return
    state.textContent = problem
    announce(problem)
  }
  const entryOf = (button) => outbox.get(button.closest("article")?.dataset.clientId)
  const actions = {
    // Names the answer: when the request arrives, the next answer may be running.
    stop: (button) => ask(button, "stop", { answer: button.closest("article").dataset.clientId }),
    again: (button) => ask(button, "again"),
    "continue": (button) => ask(button, "again", { goes_on: 1 }),
    "copy-code": (button) => copy(button, button.closest("figure")?.querySelector("code")?.textContent ?? "", words("copied")),
    "retry-message": (button) => outbox.retry(entryOf(button)?.id),
    "copy-message": (button) => copy(button, entryOf(button)?.body ?? "", words("copied")),
    "discard-message": (button) => outbox.discard(entryOf(button)?.id),
    "edit-message": (button) => edit(entryOf(button), outbox, composer),
  }
  byId("messages")?.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-action]")
    if (!button) return
    guard(() => actions[button.dataset.action]?.(button))
    if (!button.isConnected) focusComposer() // removed with its message
  })
}

// Puts the text back into the composer, after the draft.
function edit(entry, outbox, composer) {
  if (!entry || !composer) return
  composer.put([composer.text, entry.body].filter((text) => text.trim()).join("\n\n"))
  outbox.discard(entry.id)
  focusComposer()
}

// Loads older messages by htmx when the top comes into view. Only answers with our mark are swapped in.
function loadOlder(view, config, rewriters) {
  const older = byId("older")
  if (!older || !window.IntersectionObserver) return
  const holder = Object.assign(document.createElement("div"), { hidden: true })
  older.append(holder)
  let isBusy = false
  let isArmoured = false
  let wait = PAUSE
  let timer = null
  const load = async () => {
    if (isBusy || older.hidden || !view.oldest) return
    isBusy = true
    wait = Math.min(LONGEST_PAUSE, wait * 3)
    isArmoured = rewriters.isHere
    const armour = isArmoured ? "&armour=1" : ""
    const url = `${config.messages_url.replace("{id}", body.dataset.conversation)}?before=${view.oldest}${armour}`
    try {
      await window.htmx.ajax("GET", url, { source: holder, target: holder, swap: "innerHTML" })
    } catch (error) { console.error(error) }
    isBusy = false
    clearTimeout(timer)
    timer = setTimeout(() => {
      observer.unobserve(older) // observing again calls back if the top is still in view
      observer.observe(older)
    }, wait)
  }
  const refetch = () => { // in an armour
    rewriters.note()
    holder.replaceChildren()
    wait = PAUSE
  }
  holder.addEventListener("htmx:after:request", (event) => {
    const { ctx } = event.detail
    const { status, headers } = ctx.response
    const text = ctx.text = opened(ctx.text)
    const answer = text.trim()
    if (status === 200 && answer.startsWith("<chat-older") && answer.endsWith("</chat-older>")) return
    event.preventDefault()
    if (status === 200 && !isArmoured && /<chat-older.*<\/chat-older>/s.test(text)) return refetch()
    wait = Math.max(wait, advice({ header: (name) => headers.get(name), text }, Date.now()))
  })
  holder.addEventListener("htmx:after:swap", () => {
    const answer = holder.querySelector("chat-older")
    if (!answer) return
    const articles = [...answer.querySelectorAll("article.message")]
    if (!isArmoured && !articles.every(isWhole)) return refetch()
    wait = PAUSE
    older.hidden = !answer.hasAttribute("more")
    view.prepend(articles.reverse())
    holder.replaceChildren()
  })
  const onSeen = (entries) => { if (entries.some((entry) => entry.isIntersecting)) load() }
  const observer = new IntersectionObserver(onSeen, { root: byId("log"), rootMargin: "300px 0px 0px 0px" })
  observer.observe(older)
  older.querySelector("a")?.addEventListener("click", (event) => {
    event.preventDefault()
    load()
  })
}

// A dialog closes only after the server has done its action.
function listenToDialogs(act) {
  document.addEventListener("submit", async (event) => {
    const form = event.target.closest?.("form[data-act]")
    if (!form) return
    event.preventDefault()
    const problem = form.querySelector("[data-slot=problem]")
    problem.hidden = true
    if (form.dataset.act === "delete") body.dataset.deleting = ""
    problem.textContent = await act(form.querySelector("[type=submit]"), form.dataset.act, Object.fromEntries(new FormData(form)))
    problem.hidden = !problem.textContent
    if (!problem.hidden) return delete body.dataset.deleting
    form.closest("dialog").close()
  })
  for (const dialog of document.querySelectorAll("dialog[popover]")) makeModal(dialog)
}

// Without JavaScript a dialog is a popover. A modal one keeps focus and clicks, and restores the focus when it closes.
function makeModal(dialog) {
  dialog.removeAttribute("popover")
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(`[popovertarget="${dialog.id}"]`)
    if (!button) return
    if (button.getAttribute("popovertargetaction") === "hide") return dialog.close()
    byId("menu")?.hidePopover() // the dialog restores the focus to its opener
    document.querySelector(".open-menu")?.focus()
    dialog.showModal()
  })
}

// Once a page: after a late file, the watchdog may have loaded every script a second time.
async function startOnce() {
  if ("started" in body.dataset) return
  body.dataset.started = ""
  const parts = {}
  try {
    await start(parts)
    body.dataset.alive = ""
    for (const late of document.querySelectorAll(".late")) late.hidden = true // even if the styles are missing
  } catch (error) {
    console.error(error)
    parts.composer?.standAside()
  }
}

function guard(part) {
  try { return part() } catch (error) {
    console.error(error)
    return null
  }
}

startOnce()
