"""Texts of the connection test, for the page (which translates them) and the shell, and settings by proxy.

The settings are those of docs/operations.md, line by line: a test compares them.
"""

from collections.abc import Iterable


def N_(text: str) -> str:
    """Mark a text for extraction; the page translates it."""
    return text


# The question of each probe.
PROBE_WORDS = {
    "http": N_("Is the server within reach?"),
    "mark": N_("Is it our server that answers?"),
    "upgrade": N_("Does WebSocket open?"),
    "echo": N_("Does it carry messages?"),
    "poll": N_("Is a poll answered?"),
    "stream": N_("Do answers arrive as they are written?"),
    "large": N_("Does a large answer arrive whole?"),
    "hold": N_("Can a poll be held open?"),
    "idle": N_("Does a silent WebSocket stay open?"),
}

# By `probe-outcome`, if the probe has its own text, else by `outcome`.
OUTCOME_WORDS = {
    "ok": N_("Yes"),
    "skipped": N_("Not tested: something before it failed"),
    "unreachable": N_("No: nothing answers at this address"),
    "tls": N_("No: no secure connection; the certificate is not the server's, or is not trusted"),
    "hung": N_("No: the request is never answered"),
    "cut": N_("No: the connection is cut before the answer is complete"),
    "redirect": N_(
        "No: something on the way sends the request elsewhere, as guest networks and companies do before one signs in"
    ),
    "proxy-auth": N_("No: a proxy wants one to sign in to it (407)"),
    "signed-out": N_("You are signed out"),
    "drill": N_("Not now: a drill is running on this server"),
    "paused": N_("Not now: too many requests (429)"),
    "gateway": N_("No: a proxy answers that it cannot reach the server (502, 503, 504)"),
    "filtered": N_("No: something on the way refuses it (400 to 499)"),
    "failed": N_("No: the server, or a proxy, failed (500)"),
    "foreign": N_("No: another page came instead, such as a sign-in page or a filter's"),
    "slow": N_("Yes, but slowly"),
    "mark-signed-out": N_("Yes; it wants a sign-in"),
    "mark-stale": N_("No: an old answer came from a cache"),
    "mark-bare": N_("Yes; unusual headers are removed on the way, which does no harm"),
    "upgrade-off": N_("Switched off on this server (polling-only mode)"),
    "upgrade-stripped": N_("No: a proxy drops the upgrade on its way to the server"),
    "upgrade-origin": N_("No: a proxy changes the server's address, so it refuses the page's origin"),
    "upgrade-hung": N_("No: the upgrade is never answered"),
    "upgrade-mute": N_("No: it opens, and then nothing passes"),
    "upgrade-dropped": N_("No: it opens, and is cut at once"),
    "upgrade-refused": N_("No: it is refused on the way"),
    "upgrade-foreign": N_("No: an ordinary page came instead of the upgrade"),
    "echo-cut": N_("No: it was cut"),
    "echo-mute": N_("No: some messages were never answered"),
    "stream-buffered": N_("No: something on the way collects them and passes them on at the end"),
    "hold-off": N_("Switched off on this server"),
    "hold-cut": N_("No: the request is cut before its time"),
    "hold-early": N_("No: it was answered before its time, and not by news"),
    "idle-cut": N_("No: it was cut while nothing was said"),
    "idle-dropped": N_("No: it was cut within seconds"),
    "idle-mute": N_("No: it looks open, but carries nothing any more"),
}

VERDICT_WORDS = {
    "live": N_("Everything works: WebSocket is live, and polling would carry the chat without it."),
    "slow": N_("Everything works, but slowly."),
    "live-remarks": N_(
        "WebSocket is live. Polling, which carries the chat where WebSocket fails, would not be at its best."
    ),
    "socket-only": N_("WebSocket is live, but polls do not get through: there is nothing to fall back on."),
    "unsteady": N_("WebSocket opens, but does not last: the chat goes back and forth between it and polling."),
    "polling": N_("The chat works by polling. WebSocket does not get through."),
    "plain-polling": N_(
        "The chat works, with some delay: WebSocket does not get through, and polls are not held open."
    ),
    "chosen-polling": N_("The chat works by polling, as this server is set up: WebSocket is switched off."),
    "nothing": N_("Pages load, but messages get through neither by WebSocket nor by polling."),
    "unreachable": N_("The server is out of reach: nothing answers at this address."),
    "silent": N_("Something takes the requests and does not answer them."),
    "tls": N_("No secure connection to the server can be made."),
    "portal": N_("Something else answers instead of the server: a sign-in page in front of it, or a filter."),
    "proxy-auth": N_("A proxy on this network wants one to sign in to it."),
    "filtered": N_("Something on this network refuses requests to the server."),
    "gateway": N_("A proxy answers, but cannot reach the server, or the server failed."),
    "cached": N_("A cache on the way gives out old answers."),
    "paused": N_("The server, or a proxy, asks for a pause: too many requests."),
    "signed-out": N_("The server is within reach. The rest of the test needs a sign-in."),
    "drill": N_("A drill is running on this server: it fails on purpose, and ends by itself."),
}

FIX_WORDS = {
    "reach": N_("Check that the server runs, its name and port, and that no firewall is in between."),
    "tls": N_(
        "Give the server, or the proxy before it, a valid certificate. "
        "Where a company inspects traffic, let this device trust its authority."
    ),
    "proxy-auth": N_("Sign in to the network's proxy, or have requests to this host pass without it."),
    "portal": N_(
        "Open this address in a new tab and sign in to what comes there: the network, or a company's sign-in before "
        "the server. Or have requests to this host pass without it."
    ),
    "allow": N_("Have the firewall or web filter allow this host: GET and POST, and WebSocket (wss, port 443)."),
    "inspection": N_(
        "Exempt this host from traffic inspection (virus scanner, TLS inspection, VPN): "
        "it lets WebSocket open and then holds it up."
    ),
    "upgrade": N_("Pass the upgrade on to the server: HTTP/1.1, with the headers Upgrade and Connection."),
    "host": N_(
        "The proxy's operator: pass the Host header on as the browser sent it, port included, and the scheme in "
        "X-Forwarded-Proto (see CHATAPP_TRUSTED_PROXIES). Or the server's: name the address in CHATAPP_PUBLIC_URL."
    ),
    "timeout": N_("Do not cut quiet connections: 75 seconds or more for idle and read timeouts."),
    "buffering": N_("Do not buffer answers."),
    "cache": N_("Do not cache: every answer of the chat says no-store, and must be asked for each time."),
    "large": N_("Let answers of half a megabyte pass whole: limits of size, or of temporary space, on the proxy."),
    "backend": N_("See whether the server runs and where the proxy sends requests; the server's log names errors."),
    "load": N_("Look at the load of the server and of the line."),
    "sign-in": N_("Sign in, then test again."),
    "wait": N_("Wait a minute, then test again."),
    "drill": N_("Test again when the drill is over."),
}

DRILL_WORDS = {
    "refuse": N_("WebSockets are cut and refused on purpose."),
    "close": N_("WebSockets are cut on purpose, every ten seconds."),
    "mute": N_("WebSockets fall silent on purpose."),
    "delay": N_("Requests and messages are delayed on purpose."),
    "429": N_("Requests are answered with “too many requests” on purpose."),
}

# fix → proxy → lines of configuration.
SETTINGS: dict[str, dict[str, str]] = {
    "upgrade": {
        "nginx": (
            "map $http_upgrade $chat_connection {\n    default upgrade;\n"
            "    ''      '';        # keeps the connection to the server open between requests\n}\n"
            "proxy_http_version 1.1;\nproxy_set_header Upgrade $http_upgrade;\n"
            "proxy_set_header Connection $chat_connection;"
        ),
        "apache": "ProxyPass / http://127.0.0.1:8000/ upgrade=websocket timeout=75",
        "squid": "http_upgrade_request_protocols websocket allow all",
        "cloudflare": "Network → WebSockets",
    },
    "timeout": {
        "nginx": "proxy_read_timeout 75s;",
        "apache": "ProxyPass / http://127.0.0.1:8000/ upgrade=websocket timeout=75",
        "haproxy": (
            "timeout client  75s\ntimeout server  75s\n"
            "timeout tunnel  1h          # applies once a connection is a WebSocket"
        ),
        "squid": "read_timeout 15 minutes         # squid's default; not under 75 seconds",
    },
    "buffering": {"nginx": "proxy_buffering off;"},
    "large": {"nginx": "proxy_buffering off;"},
    "host": {"nginx": "proxy_set_header Host $http_host;", "apache": "ProxyPreserveHost On"},
    "cache": {"squid": "cache deny all"},
}
PROXY_NAMES = {
    "nginx": "nginx",
    "apache": "Apache",
    "haproxy": "HAProxy",
    "squid": "squid",
    "caddy": "Caddy",
    "cloudflare": "Cloudflare",
}


def outcome_words(probe: str, found: str) -> str:
    """Return the sentence for a probe's outcome."""
    return OUTCOME_WORDS.get(f"{probe}-{found}") or OUTCOME_WORDS[found]


def settings_for(fixes: Iterable[str], proxy: str) -> dict[str, str]:
    """Return lines of configuration by proxy: only of `proxy` if it has such a setting, else of all."""
    found: dict[str, list[str]] = {}
    for fix in fixes:
        known = SETTINGS.get(fix, {})
        for name, lines in known.items():
            if (proxy not in known or proxy == name) and lines not in found.setdefault(name, []):
                found[name].append(lines)
    return {name: "\n".join(lines) for name, lines in found.items()}
