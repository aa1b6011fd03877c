// The failure detector against the vectors that the Python one passes too. Run: node --test tests/js

import assert from "node:assert/strict"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { modules } from "./modules.js"

const { Detector } = await modules("transports/detector.js")
const vectors = JSON.parse(readFileSync(new URL("../vectors/detector.json", import.meta.url), "utf8"))
const near = (a, b) => a === b || Math.abs(a - b) < 1e-3

for (const scenario of vectors) {
  test(scenario.name, () => {
    const { heartbeat, triggers, kill_gap: killGap } = scenario
    const detector = new Detector(0, { heartbeat, triggers, killGap })
    let activity = scenario.first_activity
    for (const { at, do: verb, arguments: given, result, due, suspicion } of scenario.steps) {
      let found = null
      if (verb === "activity") [activity] = given
      else if (verb === "tick") {
        found = detector.tick(at, activity)
        for (const what of found) if (what === "echo") detector.ask(at)
      } else if (verb === "echoed") found = detector.echoed(given[0], at, given[1])
      else if (verb === "ask" || verb === "heard") found = detector[verb](at)
      else detector[verb](...given, at)
      const where = `${at} ${verb} ${given}`
      if (typeof result === "number") assert.ok(near(found, result), where)
      else assert.deepEqual(found ?? null, result, where)
      assert.ok(near(detector.due(activity), due), `${where}: due ${detector.due(activity)}`)
      assert.equal(detector.suspicion, suspicion, where)
    }
  })
}
