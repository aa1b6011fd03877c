// Times and days in the reader's language and time zone. They are served without text.

import { words } from "./words.js"

const language = document.documentElement.lang || undefined
const clockFormat = new Intl.DateTimeFormat(language, { hour: "2-digit", minute: "2-digit" })
export const timeFormat = new Intl.DateTimeFormat(language, { timeStyle: "medium" })
const dayFormat = new Intl.DateTimeFormat(language, { weekday: "long", day: "numeric", month: "long", year: "numeric" })
const fullFormat = new Intl.DateTimeFormat(language, { dateStyle: "full", timeStyle: "medium" })

function timeOf(at) {
  const age = Date.now() - new Date(at)
  return age >= 0 && age < 45000 ? words("just-now") : clockFormat.format(new Date(at))
}

export function wordTime(time) {
  const text = time && timeOf(time.dateTime)
  if (!time || time.textContent === text) return
  Object.assign(time, { textContent: text, title: fullFormat.format(new Date(time.dateTime)) })
}

export function daySeparator(at) {
  const separator = Object.assign(document.createElement("div"), { className: "day" })
  separator.setAttribute("role", "separator")
  separator.dataset.at = at
  wordDay(separator)
  return separator
}

function wordDay(separator) {
  const date = new Date(separator.dataset.at)
  const yesterday = new Date()
  yesterday.setDate(yesterday.getDate() - 1)
  let text = dayFormat.format(date)
  if (date.toDateString() === new Date().toDateString()) text = words("today")
  else if (date.toDateString() === yesterday.toDateString()) text = words("yesterday")
  if (separator.textContent !== text) separator.textContent = text
}

// Called each minute: "just now" and "today" expire.
export function wordTimes(holder) {
  holder?.querySelectorAll("time[datetime]").forEach(wordTime)
  holder?.querySelectorAll(".day").forEach(wordDay)
}
