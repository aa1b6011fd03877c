// The peer's server: one socket.io server for each configuration, each on a port of its own.
// Says on stdout (JSON lines) what it received; obeys on stdin: post a message to one client, drain.
import { readFileSync } from "node:fs"
import { createServer } from "node:http"
import { createInterface } from "node:readline"
import { Server } from "socket.io"

const RECOVERY = { connectionStateRecovery: {} } // two minutes, as documented
const own = name => readFileSync(new URL(name, import.meta.url))
const files = {
  "/page": ["text/html", own("page.html")],
  "/options.mjs": ["text/javascript", own("options.mjs")],
  "/socket.io.min.js": ["text/javascript", own("node_modules/socket.io/client-dist/socket.io.min.js")],
}
const servers = {}

const say = event => process.stdout.write(JSON.stringify({ at: Date.now() / 1000, ...event }) + "\n")

function serve(request, response) {
  const [type, content] = files[request.url.slice(request.url.lastIndexOf("/"))] ?? ["text/plain", ""]
  response.setHeader("content-type", type)
  response.end(content)
}

function listen(system, port) {
  const http = createServer(serve)
  const io = new Server(http, { path: `/socket.io/${system}`, ...(system === "sio" ? {} : RECOVERY) })
  io.on("connection", socket => {
    const { client } = socket.handshake.query
    socket.join(client)
    socket.on("chat", (id, acknowledge) => {
      say({ event: "received", system, client, id })
      acknowledge?.()
    })
  })
  servers[system] = io
  return new Promise(ready => http.listen(port, "127.0.0.1", ready))
}

createInterface({ input: process.stdin }).on("line", line => {
  const order = JSON.parse(line)
  if (order.do === "post") servers[order.system].to(order.client).emit("chat", order.id)
  // Not disconnectSockets: after that word the clients would not come back by themselves.
  if (order.do === "drain") {
    for (const io of Object.values(servers)) for (const one of Object.values(io.engine.clients)) one.close()
  }
}).on("close", () => process.exit())

const ports = JSON.parse(process.argv[2])
await Promise.all(Object.entries(ports).map(([system, port]) => listen(system, port)))
say({ event: "ready" })
