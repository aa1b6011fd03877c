// Judges a test of the connection by the rules that the page carries: the same as chatapp/diagnostics/verdicts.py, and the
// same vectors run against both. Nothing here does I/O.

const fits = (fact, wanted) => Array.isArray(wanted)
  ? wanted.includes(fact)
  : typeof fact === "number" && fact >= (wanted.min ?? -Infinity) && fact < (wanted.below ?? Infinity)

const first = (rules, facts) => rules.find(
  ([, conditions]) => Object.entries(conditions).every(([fact, wanted]) => fits(facts[fact] ?? null, wanted)),
)[0]

export const outcome = (table, probe, facts) => first(table.rules[probe], facts)

export const level = (table, found) => table.levels[found] ?? "failed"

// A probe that was not made counts as skipped.
export function verdict(table, outcomes) {
  const full = Object.fromEntries(table.probes.map((probe) => [probe, outcomes[probe] ?? "skipped"]))
  const name = first(table.verdicts, full)
  const wrong = table.probes.filter((probe) => ["warning", "failed"].includes(level(table, full[probe])))
  const fixes = new Set(wrong.map((probe) => table.fixes[probe][full[probe]] ?? table.fixes[probe]["*"]))
  return { name, worth: table.worth[name] ?? "degraded", fixes: [...fixes] }
}

// Which proxy an answer names in its Server and Via headers, or nothing.
export function proxyOf(table, headers) {
  const text = headers.toLowerCase()
  return table.proxies.find(([sign]) => text.includes(sign))?.[1] ?? ""
}
