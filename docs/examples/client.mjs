// A client written from docs/protocol.md, for Node 18.15 or newer, without any package: signs in, makes a conversation,
// follows it and the list, sends N messages, and prints as JSON what became of them. Exit status 0: all is right.
//   node client.mjs URL EMAIL PASSWORD --transport=websocket|polling --messages=N [--ask=TEXT] [--patience=SECONDS]
import { createHash, randomBytes, randomUUID } from "node:crypto";
const [address, email, password, ...options] = process.argv.slice(2);
const { transport = "websocket", messages = 3, ask: question = "Is polling worse?", patience = 120 } =
  Object.fromEntries(options.map((word) => word.slice(2).split(/=(.*)/s)));
const base = new URL(address.replace(/\/*$/, "/"));
const http = await import(base.protocol === "https:" ? "node:https" : "node:http");
const sleep = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));
const fatal = (text) => Object.assign(new Error(text), { fatal: true });
const states = ["connecting"], enter = (state) => state !== states.at(-1) && states.push(state);
async function stubborn(work, attempt = 0) {  // again and again, with growing waits, until the network lets it through
  try { return await work(); } catch (error) { if (error.fatal) throw error; }
  await sleep([0.3, 0.5, 1, 2, 4, 5][Math.min(attempt, 5)] * (0.5 + Math.random() / 2));
  return stubborn(work, attempt + 1);
}

// --- HTTP and signing in
const cookies = new Map(), cookie = () => [...cookies].map((pair) => pair.join("=")).join("; ");
let token, epoch, me;
async function request(method, path, fields, accept = "text/html", seconds = 10) {
  const answer = await fetch(new URL(path, base), { method, headers: { accept, cookie: cookie() }, redirect: "manual",
    body: fields && new URLSearchParams(fields), signal: AbortSignal.timeout(seconds * 1000) });
  for (const line of answer.headers.getSetCookie()) cookies.set(...line.split(";")[0].split(/=(.*)/s, 2));
  const next = answer.headers.get("location"), text = await answer.text();
  return next ? request("GET", next) : { status: answer.status, text, later: answer.headers.get("retry-after") };
}
async function signIn() {
  let page = await request("GET", "sign-in");  // who is signed in is sent on to the chat
  const csrf_token = /name="csrf_token" value="([^"]+)"/.exec(page.text)?.[1];
  if (!page.text.includes("data-epoch")) page = await request("POST", "sign-in", { csrf_token, email, password });
  [token, epoch, me] = ['-token" content', "-epoch", "-person"].map((one) => page.text.match(`${one}="([^"]+)"`)?.[1]);
  if (!token) throw Object.assign(new Error(`no chat page: status ${page.status}`), { fatal: page.status === 422 });
}

// --- Elements: a small tree; `source` is what the server sent between an element's tags
const NAMED = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'" };
const unescape = (text) => text.replace(/&(?:#x([\da-f]+)|#(\d+)|(\w+));/gi, (all, hex, decimal, name) =>
  name ? NAMED[name] ?? all : String.fromCodePoint(hex ? parseInt(hex, 16) : Number(decimal)));
function parse(html) {
  const open = [{ children: [] }], tags = html.matchAll(/<(\/?)([a-z][\w-]*)((?:"[^"]*"|[^">])*)>/g);
  for (const { 0: tag, 1: end, 2: name, 3: rest, index } of tags) {
    const at = end ? open.findLastIndex((element) => element.name === name) : 0;
    if (at > 0) for (const element of open.splice(at)) element.source = html.slice(element.from, index);
    if (end) continue;
    const attrs = {}, element = { name, attrs, children: [], from: index + tag.length, source: "" };
    for (const [, key, value] of rest.matchAll(/([^\s=/"]+)(?:="([^"]*)")?/g)) attrs[key] = unescape(value ?? "");
    open.at(-1).children.push(element);
    if (!/^(br|col|hr|img|input|wbr)$/.test(name)) open.push(element);
  }
  return open[0].children;
}

// --- Feeds: the client's rules
const bit = (sum) => (sum >>> 1) ^ (0xedb88320 & -(sum & 1)), eight = (sum) => [..."12345678"].reduce(bit, sum);
const crc = (text) => ~Buffer.from(text).reduce((sum, byte) => eight(sum ^ byte), -1) >>> 0;
const conversation = randomUUID(), nothing = () => ({ cursor: 0, shown: new Map() });  // shown: by data-id
const feeds = new Map([["list", nothing()], [conversation, nothing()]]);
const cursors = (feeds) => [...feeds].map(([name, { cursor }]) => [name, cursor]);
function applyChild({ shown }, { name, attrs, children }) {
  const [id, said, author, by, state, revision, position] = "id client-id author author-id state revision position"
    .split(" ").map((key) => attrs[`data-${key}`] ?? attrs[key]), patch = name === "chat-patch";
  const known = patch ? [...shown.values()].find((one) => one.position === Number(position)) : shown.get(id);
  if (known?.revision >= Number(revision) || (patch && !known) || (name === "article" && !position)) return;
  if (!patch) {
    const { children: parts = [] } = children.find((child) => child.attrs.class === "body") ?? {};
    const blocks = new Map(parts.map((one) => [one.attrs["data-index"], one.attrs["data-source"] ?? one.source]));
    return shown.set(id, { own: by === me && said, author, state, blocks, revision: +revision, position: +position });
  }
  for (const { attrs: { index, offset }, source } of children.filter((child) => child.name === "chat-block")) {
    const old = known.blocks.get(index) ?? "";
    if (offset > old.length) throw new RangeError("does not fit");
    known.blocks.set(index, old.slice(0, offset) + unescape(source));  // slice counts UTF-16 units
  }
  Object.assign(known, { revision: Number(revision), state: state ?? known.state });
}
function apply(feeds, { name, attrs, children }, askAgain = () => {}) {  // a poll asks again by itself
  const feed = feeds.get(attrs.feed), forget = () => Object.assign(feed, nothing());
  if (name === "chat-gone") throw fatal("the conversation is gone");
  if (name === "chat-reload" && feed) return (epoch = attrs.epoch ?? epoch), forget(), askAgain();
  if (name !== "chat-feed" || !feed || Number(attrs.to) <= feed.cursor) return;
  if ("reset" in attrs) forget();
  if (Number(attrs.from) > feed.cursor) return askAgain();
  for (const child of children) try { applyChild(feed, child); } catch (error) {
    if (error instanceof RangeError) return forget(), askAgain();
  }
  feed.cursor = Number(attrs.to);
}

// --- Polling and POST
async function ask(feeds, wait) {
  const path = `changes?epoch=${epoch}&wait=${wait}&${cursors(feeds).map((one) => `c=${one.join(":")}`).join("&")}`;
  const { status, text, later } = await request("GET", path, undefined, "*/*", wait + 6);
  if (status === 400) throw fatal(`a wrong poll: ${text}`);
  if (status !== 204 && !(status === 200 && /^<chat-answer[^]*<\/chat-answer>\s*$/.test(text)))
    throw Object.assign(new Error("not ours"), { code: status, later });
  return parse(text)[0]?.children.forEach((element) => apply(feeds, element)), { status };
}
async function poll() {
  for (let failed = 0, wait = 25, began = Date.now(); ; began = Date.now()) {
    const answer = await ask(feeds, wait).catch((error) => error), held = wait && Date.now() - began > 1000;
    if (answer.fatal) throw answer;
    enter(answer.status ? "polling" : "reconnecting");
    if (answer.status === 204 && !held) wait = 0;  // something on the way does not hold polls
    if (answer.status) (failed = 0), await sleep(wait || answer.status === 200 ? 0.05 : 3);
    else if (answer.code === 401) await stubborn(signIn);
    else await sleep(Number(answer.later) || [3, 4.5, 6.75][Math.min(failed++, 2)]);
  }
}
async function refused(code) {
  if (code === "csrf" || code === "signed-out") await signIn();
  throw Object.assign(new Error(code), { fatal: !["csrf", "signed-out", "rate", "storage"].includes(code) });
}
async function post(path, fields) {
  const { status, text } = await request("POST", path, { csrf_token: token, ...fields }, "application/json");
  return status < 300 ? JSON.parse(text) : refused(JSON.parse(text).error.code);
}

// --- WebSocket
let live, longest, waiting;  // live: says a frame, once the socket has proved itself; waiting: for an acknowledgement
const follow = () => new Promise((resolve, reject) => {  // one socket, until its end
  const key = randomBytes(16).toString("base64"), missing = new Set(["chat-hello", "chat-echo", ...feeds.keys()]);
  const proof = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
  const asked = http.get(new URL("ws", base), { timeout: 6000, headers: { cookie: cookie(), origin: base.origin,
    connection: "Upgrade", upgrade: "websocket", "sec-websocket-version": "13", "sec-websocket-key": key } });
  asked.on("timeout", () => asked.destroy()).on("error", () => resolve({}));
  asked.on("response", ({ statusCode }) => resolve({ code: statusCode })).on("upgrade", (answer, wire, head) => {
    let input = Buffer.alloc(0), heard = Date.now(), code, reason;
    const write = (opcode, data) => {
      const mask = randomBytes(4), n = data.length, size = n < 126 ? [n | 128] : [254, n >> 8, n & 255];
      wire.write(Buffer.from([opcode | 128, ...size, ...mask, ...data.map((byte, at) => byte ^ mask[at & 3])]));
    };
    const say = (frame) => write(1, Buffer.from(JSON.stringify(frame))), echo = () => say({ type: "echo", n: 1 });
    const subscribe = () => say({ type: "subscribe", epoch, feeds: Object.fromEntries(cursors(feeds)) });
    const heartbeat = setInterval(() => (Date.now() - heard < 6000 ? echo() : wire.destroy()), 1000);
    const take = (element, { name, attrs } = element) => {
      missing.delete(name === "chat-feed" ? attrs.feed : name);
      if (!missing.size) (live = say), enter("connected");
      if (name === "chat-hello") (longest = Number(attrs["max-message"])), subscribe(), echo();
      else if (attrs["client-id"] && attrs["client-id"] === waiting?.client_id)
        waiting.resolve(name === "chat-ack" ? attrs : refused(attrs.code));
      else apply(feeds, element, subscribe);
    };
    wire.setTimeout(0).on("error", () => {}).on("data", (piece) => {
      for (input = Buffer.concat([input, piece]), heard = Date.now(); input.length > 1; ) {
        const short = input[1] & 127, at = { 126: 4, 127: 10 }[short] ?? 2;
        if (input.length < at) return;
        const end = at + (at === 2 ? short : at === 4 ? input.readUInt16BE(2) : Number(input.readBigUInt64BE(2)));
        if (input.length < end) return;
        const opcode = input[0] & 15, data = input.subarray(at, end);
        input = input.subarray(end);
        if (opcode === 1) try { parse(`${data}`).forEach((element) => take(element)); } catch (error) { reject(error); }
        if (opcode === 9) write(10, data);
        if (opcode === 8) [code, reason] = [data[0] * 256 + data[1], `${data.subarray(2)}`], write(8, data), wire.end();
      }
    }).on("close", () => (clearInterval(heartbeat), (live = null), resolve({ code, reason }),
      waiting?.reject(new Error("the socket has gone"))));
    answer.headers["sec-websocket-accept"] === proof ? wire.unshift(head) : wire.destroy();
  });
});
const reconnecting = () => stubborn(async () => {
  const { code, reason } = await follow();
  enter("reconnecting");
  if ([403, 404].includes(code)) throw fatal(`/ws answers ${code}`);
  if ([401, 4401].includes(code)) await signIn();
  await sleep(Number(/retry=([\d.]+)/.exec(reason)?.[1] ?? 0));
  throw new Error("and again");
});
const send = ({ client_id, body }) => new Promise((resolve, reject) => {
  const frame = { type: "send", conversation, client_id, body };
  if (transport === "polling" || Buffer.byteLength(JSON.stringify(frame)) > longest)
    resolve(post(`c/${conversation}/messages`, { client_id, body }));
  else if (!live) reject(new Error("not connected"));
  else (waiting = { client_id, resolve, reject }), live(frame);
});

// --- The work, and what became of it
const outbox = Array.from({ length: messages }, (_, n) => ({ client_id: randomUUID(), body: `${question} (${++n})` }));
const shown = (of = feeds) => [...of.get(conversation).shown.values()].sort((a, b) => a.position - b.position);
const found = () => outbox.map(({ client_id }) => shown().filter(({ own }) => own === client_id));
const ended = () => feeds.get("list").shown.has(conversation) && found().every(({ length }) => length)
  && shown().at(-1).author === "assistant" && shown().at(-1).state !== "running";
async function work() {
  await stubborn(signIn);
  await stubborn(() => post("c", { id: conversation }));
  const reading = transport === "polling" ? poll() : reconnecting();
  for (const message of outbox) message.stored = await Promise.race([reading, stubborn(() => send(message))]);
  while (!ended()) await Promise.race([reading, sleep(0.05)]);
  const fresh = new Map([[conversation, nothing()]]), picture = (item) => JSON.stringify([item.state, ...item.blocks]);
  await stubborn(() => ask(fresh, 0));  // have the patches made of it what the server has?
  return shown(fresh).filter((item) => !shown().some((other) => picture(other) === picture(item))).length;
}
const differing = await Promise.race([work(), sleep(patience)]).catch((error) => console.error(error.message));
const count = (list, test) => list.filter(test).length, all = found();
const bad = { lost: count(all, (copies) => !copies.length), doubled: count(all, (copies) => copies.length > 1),
  reordered: count(all, ([one], n) => one?.position < all[n - 1]?.[0]?.position), differing };
const sent = outbox.length, acknowledged = count(outbox, ({ stored }) => stored);
console.log(JSON.stringify({ transport, sent, acknowledged, ...bad, states }));
process.exit(acknowledged === sent && Object.values(bad).every((n) => n === 0) ? 0 : 1);
