// The pace of polls against the vectors that the Python one passes too. Run: node --test tests/js

import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { modules } from "./modules.js"

const { Pacing } = await modules("transports/pacing.js")
const vectors = JSON.parse(readFileSync(new URL("../vectors/pacing.json", import.meta.url), "utf8"))
const camel = (name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase())

for (const { name, poll_ms: pollMs, hold_ms: holdMs, steps } of vectors) {
  test(name, () => {
    const pacing = new Pacing(pollMs, holdMs)
    for (const { do: verb, arguments: given, result, why } of steps) {
      const found = pacing[camel(verb)](...given) ?? null
      const where = `${verb} ${given}`
      assert.ok(found === result || Math.abs(found - result) < 1e-3, `${where}: ${found} is not ${result}`)
      assert.equal(pacing.why, why, where)
    }
  })
}
