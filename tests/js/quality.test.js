// The quality against the vectors that the Python one passes too. Run: node --test tests/js

import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { modules } from "./modules.js"

const { Quality } = await modules("quality.js")
const vectors = JSON.parse(readFileSync(new URL("../vectors/quality.json", import.meta.url), "utf8"))

for (const { name, steps } of vectors) {
  test(name, () => {
    const quality = new Quality()
    for (const { do: verb, arguments: given, result } of steps) {
      assert.deepEqual(quality[verb](...given) ?? null, result, `${verb} ${given}`)
    }
  })
}
