// What is remembered of networks against the vectors that Python passes too. Run: node --test tests/js

import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { modules } from "./modules.js"

const { noteNetwork, trust } = await modules("surroundings.js")
const vectors = JSON.parse(readFileSync(new URL("../vectors/memory.json", import.meta.url), "utf8"))
const near = (one, other) => Math.abs(one - other) < 1e-6

for (const { name, steps } of vectors) {
  test(name, () => {
    const networks = {}
    for (const step of steps) {
      noteNetwork(networks, step.key, step.now, step.has_worked, step.kill_gap)
      const entry = networks[step.key]
      for (const key of Object.keys(step.entry)) assert.ok(near(entry[key], step.entry[key]), `${key} at ${step.now}`)
      assert.equal(Object.keys(networks).length, step.count)
      assert.ok(near(trust(entry, step.now), step.trust))
    }
  })
}
