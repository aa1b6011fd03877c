// Node's socket.io, rooms and nothing else. Usage: node node_socketio.mjs PORT
import { createServer } from "node:http"
import { createRequire } from "node:module"

const require = createRequire(process.env.BENCH_NODE_MODULES)
const { Server } = require("socket.io")
const http = createServer()
const io = new Server(http, {
  pingInterval: Number(process.env.BENCH_PING_S) * 1000,
  pingTimeout: 20000,
  perMessageDeflate: false,
  serveClient: false,
})

io.on("connection", (socket) => {
  socket.on("join", (room, done) => {
    socket.join(room)
    done(true)
  })
  socket.on("m", (room, body, done) => {
    io.to(room).emit("m", body)
    done(true)
  })
})

http.listen(Number(process.argv[2]), "127.0.0.1", 4096)
