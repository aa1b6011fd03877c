// A mark that cannot be fetched is not asked for at each event. Run: node --test tests/js

import assert from "node:assert/strict"
import { test } from "node:test"
import { modules } from "./modules.js"

const { Cause } = await modules("transports/cause.js")
const POLLING = { status: "polling", ws: "none", wsReason: "upgrade-failed" }

test("where no mark comes it is asked for after 10 s, then later and later, and at once after a press", async () => {
  let now = 0
  let asked = 0
  globalThis.location = { origin: "http://127.0.0.1" }
  globalThis.fetch = async () => {
    asked += 1
    throw new TypeError("unreachable")
  }
  Object.defineProperty(performance, "now", { value: () => now })
  const cause = new Cause({ mark_url: "/mark", drill_ms: 0 }, () => assert.fail("nothing was found out"))
  for (; now < 200000; now += 1000) await cause.explain(POLLING)
  assert.equal(asked, 6) // at 0, 10, 30, 70, 130, 190 s
  cause.forget()
  await cause.explain(POLLING)
  assert.equal(asked, 7)
})
