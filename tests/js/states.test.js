// The JS interpreter against the vectors that the Python one passes too. Run: node --test tests/js

import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { fileURLToPath } from "node:url"
import { modules } from "./modules.js"

const here = (path) => fileURLToPath(new URL(path, import.meta.url))
const states = await modules("states.js")
const delays = await modules("delays.js")
const vectors = JSON.parse(readFileSync(here("../vectors/states.json"), "utf8"))
const python = process.env.PYTHON ?? here("../../.venv/bin/python")
const table = JSON.parse(execFileSync(
  python, ["-c", "from chatapp.connection.states import table_json; print(table_json())"], { cwd: here("../..") },
))

function chance(values) {
  let next = 0
  return () => values[next++ % values.length]
}

for (const scenario of vectors.scenarios) {
  test(scenario.name, () => {
    const random = chance(scenario.random)
    let record = states.newRecord(scenario.config)
    for (const row of scenario.steps) {
      const expected = { ...record, ...row.changes }
      const [after, actions] = states.step(table, record, row.event, row.at, scenario.config, random)
      assert.deepEqual(actions, row.actions, JSON.stringify(row))
      assert.deepEqual(after, expected, JSON.stringify(row))
      record = after
    }
  })
}

test("delays", () => {
  const camel = (name) => name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase())
  for (const row of vectors.delays) {
    const more = row.random === null ? [] : [() => row.random]
    assert.equal(delays[camel(row.function)](...row.arguments, ...more), row.result, JSON.stringify(row))
  }
})

test("round trips", () => {
  let estimate = null
  for (const row of vectors.rtt) {
    estimate = delays.rttEstimate(estimate, row.sample)
    for (const key of ["srtt", "rttvar", "rto"]) assert.ok(Math.abs(estimate[key] - row[key]) < 1e-6, key)
  }
})

test("connected means that messages flow", () => {
  assert.deepEqual(table.states.filter(states.isConnected), ["connected", "polling"])
})
