// The connection's delays, timeouts and penalties: pure functions. Milliseconds; `random` returns a value in [0, 1).

// From the start of a WebSocket attempt until a poll joins the race.
export const headStart = (latency) => Math.floor(Math.min(700, Math.max(300, 2 * latency + 250)))

// Before attempt `attempts + 1`: 0-0.3 s, then 0.5, 1, 2, 4 … up to `reconnect_ms`, less a quarter at random.
export function retryDelay(attempts, config, random) {
  if (attempts === 0) return Math.floor(300 * random())
  const ceiling = Math.min(config.reconnect_ms, 500 * 2 ** Math.min(attempts - 1, 20))
  return Math.floor(ceiling * (1 - 0.25 * random()))
}

// In `error`: twice `reconnect_ms`; if hidden six times, growing to twelve times; less a quarter at random.
export function slowRetryDelay(times, activity, config, random) {
  const ceiling = config.reconnect_ms * (activity === "hidden" ? Math.min(12, 6 * 1.5 ** Math.min(times, 20)) : 2)
  return Math.floor(ceiling * (1 - 0.25 * random()))
}

// While polling: the longest time from the start of one WebSocket probe to the next, by activity.
export const PROBE_CAP = { active: 10000, visible: 60000, idle: 300000, hidden: 900000 }

// Before the next WebSocket probe while polling: 1-3 s first, then decorrelated jitter under a cap.
export function probeDelay(previous, activity, random) {
  if (previous === 0) return Math.floor(1000 + 2000 * random())
  return Math.floor(Math.min(PROBE_CAP[activity], 1000 + random() * (3 * previous - 1000)))
}

// Before a failed poll's retry: `poll_ms`, times `poll_backoff` for each further failure, 5 % either way.
export function pollRetryDelay(failures, config, random) {
  if (failures === 0) return Math.floor(300 * random())
  const base = config.poll_ms * config.poll_backoff ** Math.min(failures - 1, 20)
  return Math.floor(base * (0.95 + 0.1 * random()))
}

// Damping: each unclean end of a socket adds to a penalty that halves every five minutes.
const HALF_LIFE = 300000
const SUPPRESS = 2500
const REUSE = 750
const CEILING = 6000

// The penalty for an unclean end after `lived`. A proxy's known idle timeout is hardly instability.
export function penaltyOf(lived, isPattern) {
  if (isPattern || lived >= 300000) return 250
  return lived < 10000 ? 1500 : 1000
}

export const decayed = (penalty, age) => penalty * 2 ** (-Math.max(0, age) / HALF_LIFE)

// How long WebSocket is suppressed: until the penalty has decayed to REUSE.
export const dampedFor = (penalty) => penalty < SUPPRESS ? 0 : Math.floor(HALF_LIFE * Math.log2(penalty / REUSE))

// How long a socket must live after its echoes before it counts as connected: longer if sockets keep dying.
export const proofMs = (penalty) => penalty < REUSE ? 0 : Math.floor(Math.min(4000, penalty))

// RFC 6298: smoothed round trip, its deviation and the timeout, clamped to 1-6 s.
export function rttEstimate(previous, sample) {
  let srtt = sample
  let rttvar = sample / 2
  if (previous) {
    rttvar = 0.75 * previous.rttvar + 0.25 * Math.abs(previous.srtt - sample)
    srtt = 0.875 * previous.srtt + 0.125 * sample
  }
  return { srtt, rttvar, rto: Math.min(6000, Math.max(1000, srtt + Math.max(100, 4 * rttvar))) }
}

// --- ended sockets, in the record ---

const BLAME = 5000 // a cut counts against WebSocket only if the server answers again within this time
const SIMILAR = 0.05 // three silent gaps that differ by no more than this share are a proxy's idle timeout
const PATTERN = 3
const SHORTEST_GAP = 1500

// proofMs of a socket that is opened now.
export const proof = (record, now) => proofMs(decayed(record.penalty, now - record.penaltyAt) + record.blame)

// A working socket has ended. Not WebSocket's fault: a restart of the server, a hidden page, no network.
export function noteEnd(record, event, now) {
  if ("advice_ms" in event || event.reason === "server-restart" || record.offline) return
  const isPattern = noteGap(record, event.silent_ms ?? 0)
  if (record.activity === "hidden") return
  record.blame = penaltyOf(now - record.wsSince, isPattern)
  record.blamedAt = now
  if (record.poll === "up") charge(record, now)
}

// Sockets cut repeatedly after the same silence: a proxy's idle timeout. → true from the second one on
function noteGap(record, gap) {
  if (gap < SHORTEST_GAP) return false
  const alike = record.gaps.filter((one) => Math.abs(one - gap) <= SIMILAR * gap)
  record.gaps = [...alike, gap].slice(-PATTERN)
  if (record.gaps.length === PATTERN) { // the next socket sends echoes more often: forget the penalty
    Object.assign(record, { killGap: Math.min(...record.gaps), penalty: 0, dampedUntil: 0 })
  }
  return alike.length > 0
}

// Adds the blame to the penalty; beyond a limit WebSocket is suppressed for minutes.
export function charge(record, now) {
  const { blame } = record
  record.blame = 0
  if (!blame || now - record.blamedAt > BLAME) return
  const before = decayed(record.penalty, now - record.penaltyAt)
  record.penalty = Math.min(CEILING, Math.floor(before + blame))
  record.penaltyAt = now
  const damped = dampedFor(record.penalty)
  if (!damped) return
  record.dampedUntil = now + damped
  if (record.ws === "none") record.wsReason = "unstable"
}
