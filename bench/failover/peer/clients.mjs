// The peer's clients in Node, one process for many: orders on stdin, what happens on stdout (JSON lines).
import { createInterface } from "node:readline"
import { io } from "socket.io-client"
import { optionsOf, watch } from "./options.mjs"

const sockets = {}
const say = event => process.stdout.write(JSON.stringify({ at: Date.now() / 1000, ...event }) + "\n")

createInterface({ input: process.stdin }).on("line", line => {
  const { do: verb, client, system, url, id } = JSON.parse(line)
  if (verb === "start") {
    sockets[client] = io(url, optionsOf(system, client))
    watch(sockets[client], event => say({ client, ...event }))
    say({ event: "started", client })
  }
  if (verb === "send") {
    say({ event: "sent", client, id })
    sockets[client].emit("chat", id)
  }
  if (verb === "ping") say({ event: "pong" })
  if (verb === "stop") {
    for (const socket of Object.values(sockets)) socket.disconnect()
    say({ event: "stopped" })
    setTimeout(() => process.exit(), 50)
  }
}).on("close", () => process.exit())
