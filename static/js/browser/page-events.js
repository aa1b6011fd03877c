// The events of a page that a connection acts on: visibility, network, restoring, use.

// Calls back at each sign of user activity.
export function onUse(act) {
  for (const kind of ["keydown", "pointerdown", "wheel"]) addEventListener(kind, act, { passive: true, capture: true })
}

// Calls back on another type of network, if the browser reports it. "change" also fires for mere estimates of speed.
function onNetworkChange(act) {
  const network = navigator.connection
  let kind = network?.type
  network?.addEventListener?.("change", () => {
    if (network.type !== kind) act()
    kind = network.type
  })
}

// Browser events: on(name), and onRestore() when the page returns from the back/forward cache.
export function listen(on, onRestore, watchesNetwork) {
  document.addEventListener("visibilitychange", () => on(document.hidden ? "hidden" : "wake"))
  document.addEventListener("resume", () => on("wake")) // thawed by the browser
  addEventListener("online", () => on("online"))
  addEventListener("offline", () => on("offline"))
  addEventListener("pageshow", (event) => { if (event.persisted) onRestore() })
  if (watchesNetwork) onNetworkChange(() => on("online"))
}
