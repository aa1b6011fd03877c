// The page's judgement of a test of the connection against the vectors that Python passes too. Run: node --test tests/js

import assert from "node:assert/strict"
import { execFileSync } from "node:child_process"
import { readFileSync } from "node:fs"
import { test } from "node:test"
import { fileURLToPath } from "node:url"

const here = (path) => fileURLToPath(new URL(path, import.meta.url))
const source = readFileSync(here("../../static/js/check/verdicts.js"), "utf8")
const judge = await import(`data:text/javascript,${encodeURIComponent(source)}`)
const vectors = JSON.parse(readFileSync(here("../vectors/probes.json"), "utf8"))
const python = process.env.PYTHON ?? here("../../.venv/bin/python")
const table = JSON.parse(execFileSync(
  python, ["-c", "from chatapp.connection.probes import rules_json; print(rules_json())"], { cwd: here("../..") },
))

test("outcomes", () => {
  for (const row of vectors.outcomes) {
    assert.equal(judge.outcome(table, row.probe, row.facts), row.outcome, JSON.stringify(row))
  }
})

test("verdicts", () => {
  for (const row of vectors.verdicts) assert.deepEqual(judge.verdict(table, row.outcomes), row.verdict)
})

test("proxies", () => {
  for (const row of vectors.proxies) assert.equal(judge.proxyOf(table, row.headers), row.proxy)
})
