// How each configuration of the peer dials: as it comes; with retries (and the server's recovery); WebSocket first.
const RETRIES = { retries: 3, ackTimeout: 5000 }
const WEBSOCKET_FIRST = { transports: ["websocket", "polling"], tryAllTransports: true }

export const optionsOf = (system, client) => ({
  path: `/socket.io/${system}`,
  query: { client },
  forceNew: true,
  ...(system === "sio" ? {} : RETRIES),
  ...(system === "sio-first" ? WEBSOCKET_FIRST : {}),
})

// Tells of every change of the connection, and of every message.
export function watch(socket, say) {
  const name = () => socket.io.engine?.transport?.name ?? ""
  socket.io.on("open", () => socket.io.engine.on("upgrade", () => {
    if (socket.connected) say({ event: "state", state: "up", transport: name() })
  }))
  socket.on("connect", () => say({ event: "state", state: "up", transport: name(), recovered: socket.recovered }))
  socket.on("disconnect", why => say({ event: "state", state: "down", transport: "", why }))
  socket.on("chat", id => say({ event: "got", id }))
}
