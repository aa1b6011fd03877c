// Starts the page's parts and joins them; each also works where another is missing.

import { states } from "./brought.js"
import { isWhole, opened } from "./browser/integrity.js"
import { Reports } from "./browser/reports.js"
import { uuid } from "./browser/uuid.js"
import { pageWorld } from "./browser/world.js"
import { copy } from "./chat/clipboard.js"
import { Composer, focusComposer } from "./chat/composer.js"
import { Outbox } from "./connection/outbox.js"
import { Posts, advice } from "./connection/posts.js"
import { isConnected } from "./connection/states.js"
import { ConversationView } from "./chat/conversation.js"
import { readOffline } from "./browser/offline.js"
import { guardOlderEntries } from "./chat/older-entries.js"
import { announce } from "./chat/announcer.js"
import { words } from "./chat/words.js"
import { connectionFor } from "./browser/sharing.js"
import { StatusView } from "./chat/status.js"
import { Drafts, NEW } from "./chat/drafts.js"
import { forgetOlder, movedEntries } from "./browser/older.js"
import { Storage } from "./browser/storage.js"
import { noteUnkept } from "./chat/unkept.js"

const OLDER_WAIT = 300 // ms between pages of older messages; longer and longer where none comes
const LONGEST_OLDER_WAIT = 60000

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? ""
const body = document.body

// made: gets the composer, which has to stand aside where the rest fails
async function start(made) {
  const config = JSON.parse(meta("chat-config"))
  const { instance, person } = body.dataset
  const prefix = `${instance}:${person}`
  const world = pageWorld(prefix, config)
  const connection = connectionFor(prefix, config, states, world)
  connection.reports = new Reports(prefix, uuid(), config.events_url, () => connection.mayAsk)
  const storage = new Storage(`chatapp:${prefix}`)
  const older = { take: () => movedEntries(storage, prefix), forget: (id) => forgetOlder(prefix, id) }
  const outbox = new Outbox(world, storage, older, (entry) => connection.deliver(entry))
  outbox.onUnkept = noteUnkept
  const composer = made.composer = guard(() => new Composer(new Drafts(storage, prefix), (text, beside) => send(outbox, text, beside)))
  await outbox.load()
  if ("unsaved" in body.dataset) body.dataset.conversation = outbox.unmade ?? body.dataset.conversation
  const { conversation } = body.dataset
  await openDraft(composer, outbox, conversation)
  const view = new ConversationView(conversation, `${prefix}:place:${conversation}`)
  connection.view = view
  if (view.isAltered) connection.rewriters.note()
  connection.outbox = outbox
  guard(() => new StatusView(connection, config))

  outbox.onChange = (entry, what, why) => {
    const isMade = what === "sent" && entry.create && entry.conversation === conversation
    const moved = isMade ? composer?.moveTo(conversation) : null
    if (isMade) adopt(connection, conversation, config)
    if (["stored", "sent"].includes(what) && entry.conversation === conversation) composer?.confirm(entry)
    view.onOutbox(entry, what, why)
    const isLost = entry.failed?.code === "gone" && entry.conversation !== conversation // its page opens no more
    if (isLost && ["added", "failed"].includes(what)) outbox.moveToDrafts(entry, NEW)
    if (what === "added" && ["reconnecting", "error"].includes(connection.record.status)) connection.retry()
    connection.dispatch({ type: "queue", queued: outbox.size })
    return moved
  }
  document.addEventListener("connection:changed", ({ detail }) => {
    outbox.setOpen(isConnected(detail.status))
    composer?.setEnabled(!["disconnected"].includes(detail.status) && detail.reason !== "refused")
  })
  const posts = new Posts(config, world, (event) => connection.dispatch(event))
  const act = actor(posts, config)
  view.onGone = (feed) => onGone(feed, outbox, composer, posts, config)

  connection.follow("list", Number(document.getElementById("conversations")?.dataset.cursor) || 0)
  if (conversation && !("unsaved" in body.dataset)) {
    connection.follow(conversation, Number(document.getElementById("messages")?.dataset.cursor) || 0)
  }
  guard(() => outbox.show())
  guard(() => listenToButtons(outbox, act, composer))
  guard(() => loadOlder(view, config, connection.rewriters))
  view.onListCut = guard(() => guardOlderEntries(connection.rewriters, () => view.know("list"))) ?? view.onListCut
  guard(() => listenToDialogs(act))
  guard(() => readOffline(config, () => view.isAwaiting(), connection.rewriters))
  connection.start()
  // A new conversation is for writing: the click that made it took the keyboard away.
  if (document.activeElement === body && isEmpty()) focusComposer()
}

// A conversation in which nothing was said yet. (Not by :has(), which older browsers do not know.)
function isEmpty() {
  const messages = document.getElementById("messages")
  return messages !== null && !messages.querySelector("article")
}

// A page that has no conversation of its own yet has another id each time: its draft must not go by that. It is still
// there where the page was reloaded before it heard that its conversation is made.
async function openDraft(composer, outbox, conversation) {
  const isUnheard = () => outbox.unmade === conversation
  const isUnsaved = "unsaved" in body.dataset
  await composer?.open(isUnsaved ? NEW : conversation, () => isUnheard() || isEmpty())
  if (!isUnsaved && isUnheard() && composer?.text) composer.put(composer.text)
}

function send(outbox, text, beside) {
  const { conversation, gone } = body.dataset
  if (gone !== undefined) return document.querySelector("#gone [data-action=go-on]")?.click()
  return outbox.add(uuid(), conversation, text, { create: "unsaved" in body.dataset, beside })
}

// The first message made the conversation: from now on this page is its page.
function adopt(connection, conversation, config) {
  if (!("unsaved" in body.dataset)) return
  delete body.dataset.unsaved
  const base = config.messages_url.replace("{id}", conversation).replace(/\/messages$/, "")
  history.replaceState(history.state, "", base)
  connection.follow(conversation, 0)
}

// The conversation was deleted. Only where that was asked for here, and nothing is written, is there nothing to stay for.
function onGone(feed, outbox, composer, posts, config) {
  outbox.failAll(feed, "gone")
  const texts = () => [...outbox.of(feed).map((entry) => entry.body), composer?.text].filter((text) => text?.trim())
  if ("deleting" in body.dataset && texts().length === 0) return location.assign(body.dataset.base ?? "/")
  body.dataset.gone = ""
  composer?.moveTo(NEW).catch((error) => console.error(error)) // where the next new conversation finds it
  const note = document.getElementById("gone")
  if (!note) return
  note.hidden = false
  const id = uuid() // the same at each press: what was made is not made again
  note.querySelector("[data-action=go-on]").addEventListener("click", async ({ target }) => {
    target.disabled = true
    const problem = note.querySelector("[data-slot=problem]")
    problem.textContent = await goOn(id, feed, texts, { outbox, composer, posts, config })
    target.disabled = false
  })
}

// With all that was written, in a new conversation; this page goes only once it is stored for that one. → what went wrong
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
  location.assign(config.messages_url.replace("{id}", id).replace(/\/messages$/, ""))
  return ""
}

// act(button, what, fields) → what went wrong, in words, or "". What it changes comes by the feed.
function actor(posts, config) {
  return async (button, what, fields = {}) => {
    const hadFocus = document.activeElement === button
    button.disabled = true
    const url = config.messages_url.replace("{id}", body.dataset.conversation).replace(/messages$/, what)
    const outcome = await posts.act(url, fields)
    button.disabled = false
    if (hadFocus) button.isConnected ? button.focus() : focusComposer()
    if (outcome.ok) return ""
    return outcome.words || words(outcome.retry === "signed-out" ? "reason-signed-out" : "not-done")
  }
}

function listenToButtons(outbox, act, composer) {
  const ask = async (button, what, fields) => {
    const problem = await act(button, what, fields)
    const state = button.parentElement?.querySelector(".state")
    if (!problem || !state) return
    state.textContent = problem
    announce(problem)
  }
  const ownEntry = (button) => outbox.get(button.closest("article")?.dataset.clientId)
  const actions = {
    // Which one: by the time it arrives, the next answer may be the one that is being written.
    stop: (button) => ask(button, "stop", { answer: button.closest("article").dataset.clientId }),
    again: (button) => ask(button, "again"),
    "copy-code": (button) => copy(button, button.closest("figure")?.querySelector("code")?.textContent ?? "", words("copied")),
    "retry-message": (button) => outbox.retry(ownEntry(button)?.id),
    "copy-message": (button) => copy(button, ownEntry(button)?.body ?? "", words("copied")),
    "discard-message": (button) => outbox.discard(ownEntry(button)?.id),
    "edit-message": (button) => edit(ownEntry(button), outbox, composer),
  }
  document.getElementById("messages")?.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-action]")
    if (!button) return
    guard(() => actions[button.dataset.action]?.(button))
    if (!button.isConnected) focusComposer() // it went with what it was about
  })
}

// Back into the field, after what is being written there.
function edit(entry, outbox, composer) {
  if (!entry || !composer) return
  composer.put([composer.text, entry.body].filter((text) => text.trim()).join("\n\n"))
  outbox.discard(entry.id)
  focusComposer()
}

// Older messages when the top comes into view, by htmx into a holder of their own; only an answer of ours is swapped.
function loadOlder(view, config, rewriters) {
  const older = document.getElementById("older")
  if (!older || !window.IntersectionObserver) return
  const holder = Object.assign(document.createElement("div"), { hidden: true })
  older.append(holder)
  let isBusy = false
  let isArmoured = false
  let wait = OLDER_WAIT
  let timer = null
  const load = async () => {
    if (isBusy || older.hidden || !view.oldest) return
    isBusy = true
    wait = Math.min(LONGEST_OLDER_WAIT, wait * 3)
    isArmoured = rewriters.isHere
    const armour = isArmoured ? "&armour=1" : ""
    const url = `${config.messages_url.replace("{id}", body.dataset.conversation)}?before=${view.oldest}${armour}`
    try {
      await window.htmx.ajax("GET", url, { source: holder, target: holder, swap: "innerHTML" })
    } catch (error) { console.error(error) }
    isBusy = false
    clearTimeout(timer)
    timer = setTimeout(() => {
      observer.unobserve(older) // observing again tells whether the top is still in view
      observer.observe(older)
    }, wait)
  }
  const distrust = () => { // it comes again, in an armour
    rewriters.note()
    holder.replaceChildren()
    wait = OLDER_WAIT
  }
  holder.addEventListener("htmx:after:request", (event) => {
    const { ctx } = event.detail
    const { status, headers } = ctx.response
    const text = ctx.text = opened(ctx.text)
    const whole = text.trim()
    if (status === 200 && whole.startsWith("<chat-older") && whole.endsWith("</chat-older>")) return
    event.preventDefault()
    if (status === 200 && !isArmoured && /<chat-older.*<\/chat-older>/s.test(text)) return distrust()
    wait = Math.max(wait, advice({ header: (name) => headers.get(name), text }, Date.now()))
  })
  holder.addEventListener("htmx:after:swap", () => {
    const answer = holder.querySelector("chat-older")
    if (!answer) return
    const articles = [...answer.querySelectorAll("article.message")]
    if (!isArmoured && !articles.every(isWhole)) return distrust()
    wait = OLDER_WAIT
    older.hidden = !answer.hasAttribute("more")
    view.prepend(articles.reverse())
    holder.replaceChildren()
  })
  const seen = (entries) => { if (entries.some((entry) => entry.isIntersecting)) load() }
  const observer = new IntersectionObserver(seen, { root: document.getElementById("log"), rootMargin: "300px 0px 0px 0px" })
  observer.observe(older)
  older.querySelector("a")?.addEventListener("click", (event) => {
    event.preventDefault()
    load()
  })
}

// A dialog closes only once our server has done what it asks for.
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

// Without JavaScript a dialog is a popover. A modal one keeps focus and clicks, and gives the focus back when it closes.
function makeModal(dialog) {
  dialog.removeAttribute("popover")
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(`[popovertarget="${dialog.id}"]`)
    if (!button) return
    if (button.getAttribute("popovertargetaction") === "hide") return dialog.close()
    document.getElementById("menu")?.hidePopover() // the focus goes back to what opened it
    document.querySelector(".open-menu")?.focus()
    dialog.showModal()
  })
}

// Once a page: where a file was late, the watchdog may have loaded all of them a second time.
async function comeAlive() {
  if ("started" in body.dataset) return
  body.dataset.started = ""
  const made = {}
  try {
    await start(made)
    body.dataset.alive = ""
    for (const late of document.querySelectorAll(".late")) late.hidden = true // also where the styles are missing
  } catch (error) {
    console.error(error)
    made.composer?.standAside()
  }
}

function guard(part) {
  try { return part() } catch (error) {
    console.error(error)
    return null
  }
}

comeAlive()
