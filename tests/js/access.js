// What tests/test_access.py asks of the shipped module, in QuickJS: when a session's access is renewed.

import { Access } from "../../static/js/connection/access.js"

let now, wall, timers, notes, asked, answers, ended, access

// One page, whose answers to renewals are these, in turn: [status, text].
export function begin(access_ms, given, note = null, page = "foreign-page") {
  now = wall = 1000000
  timers = []
  asked = []
  ended = []
  answers = given
  notes = note ? { access: { ...note, at: wall - note.age } } : {}
  const world = {
    now: () => now, wall: () => wall, random: () => 0, session: { token: "t", refresh: async () => page },
    later: (act, ms) => timers[timers.push({ at: now + ms, act }) - 1], cancel: (timer) => { if (timer) timer.act = null },
    notes: { read: (name) => notes[name] ?? null, write: (name, value) => { notes[name] = value } },
    ask: async () => {
      asked.push(wall - 1000000)
      const [status, text] = answers.shift()
      return { status, text }
    },
  }
  access = new Access({ access_ms, renew_url: "/session/renew" }, world, () => {}, (outcome) => ended.push(outcome))
  access.start()
}

// Time passes, awake; what is due happens.
export function pass(ms) {
  now += ms
  wall += ms
  for (const timer of timers.splice(0)) {
    if (timer.at > now) timers.push(timer)
    else timer.act?.()
  }
}

// The machine sleeps: no timer runs, and the monotonic clock stands still.
export function sleep(ms) { wall += ms }

export const check = () => access.check()
export const stop = () => access.stop()
export const seen = () => ({ asked, ended, pending: timers.filter((timer) => timer.act).length })
