// The drawing of the way from this browser to the server: one line for each transport, with its probes as points, and a
// break where the first of them failed and none behind it got through.

const way = document.getElementById("way")
const levelOf = (point) => document.querySelector(`.probes [data-probe="${point.dataset.probe}"]`).dataset.level
const isThrough = (level) => level === "ok" || level === "warning"

// → the place of the break, or null
function breakOf(levels, places) {
  const at = levels.indexOf("failed")
  return at < 0 || levels.slice(at).some(isThrough) ? null : places[at]
}

function stateOf(levels, place) {
  if (place !== null) return "broken"
  if (levels.includes("running")) return "running"
  if (levels.some(isThrough)) return "open"
  return levels.includes("failed") ? "broken" : levels.every((level) => level === "note") ? "unasked" : "waiting"
}

export function drawWay() {
  for (const line of way.querySelectorAll("[data-line]")) {
    const points = [...line.querySelectorAll(".point")]
    const levels = points.map(levelOf)
    points.forEach((point, n) => { point.dataset.level = levels[n] })
    const place = breakOf(levels, points.map((point) => point.getAttribute("x")))
    line.dataset.state = stateOf(levels, place)
    const to = place ?? (line.dataset.state === "unasked" ? "0%" : "100%")
    line.querySelector(".before").setAttribute("x2", to)
    line.querySelector(".after").setAttribute("x1", to)
    line.querySelector(".gap").setAttribute("x", to)
    // The ends belong to the line before and behind the break.
    way.querySelector(`.you [data-end=${line.dataset.line}]`).dataset.state = to === "0%" ? "unasked" : line.dataset.state
    way.querySelector(`.server [data-end=${line.dataset.line}]`).dataset.state = to === "100%" ? line.dataset.state : "unasked"
  }
}

// What is written of the break: the first point that failed on a broken line.
export function brokenProbe() {
  const point = way.querySelector("[data-state=broken] .point[data-level=failed]")
  return point?.dataset.probe ?? ""
}

export function nameProxy(name) { if (name) way.querySelector("[data-slot=product]").textContent = name }
