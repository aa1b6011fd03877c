// Judges a connection test by the rules in the page: as chatapp/diagnostics/verdicts.py does; tests/vectors/probes.json
// runs in both. No I/O.

const fits = (fact, wanted) => Array.isArray(wanted)
  ? wanted.includes(fact)
  : typeof fact === "number" && fact >= (wanted.min ?? -Infinity) && fact < (wanted.below ?? Infinity)

const first = (rules, facts) => rules.find(
  ([, conditions]) => Object.entries(conditions).every(([fact, wanted]) => fits(facts[fact] ?? null, wanted)),
)[0]

export const outcome = (table, probe, facts) => first(table.rules[probe], facts)

export const level = (table, found) => table.levels[found] ?? "failed"

// A missing outcome counts as skipped.
export function verdict(table, outcomes) {
  const full = Object.fromEntries(table.probes.map((probe) => [probe, outcomes[probe] ?? "skipped"]))
  const name = first(table.verdicts, full)
  const wrong = table.probes.filter((probe) => ["warning", "failed"].includes(level(table, full[probe])))
  const fixes = new Set(wrong.map((probe) => table.fixes[probe][full[probe]] ?? table.fixes[probe]["*"]))
  return { name, worth: table.worth[name] ?? "degraded", fixes: [...fixes] }
}

// The proxy named by an answer's Server and Via headers, or "".
export function proxyOf(table, headers) {
  const text = headers.toLowerCase()
  return table.proxies.find(([sign]) => text.includes(sign))?.[1] ?? ""
}
