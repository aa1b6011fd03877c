"""Lines of the connection's client by room, at several commits: `python -m bench.lines [COMMIT …]`."""

import fnmatch
import subprocess
import sys

ROOMS = {
    "the client's rules, JavaScript": (
        "static/js/connection/*.js",
        "static/js/connection.js",
        "static/js/states.js",
        "static/js/delays.js",
        "static/js/quality.js",
        "static/js/outbox.js",
        "static/js/surroundings.js",
        "static/js/transports/*.js",
    ),
    "a page's ports": tuple(
        f"static/js/browser/{name}.js"
        for name in ("world", "page-events", "asking", "polls", "integrity", "reports", "clock", "uuid")
    ),
    "the view, tabs": (
        "static/js/chat/conversation.js",
        "static/js/browser/sharing.js",
        "static/js/browser/tabs.js",
        "static/js/conversation.js",
        "static/js/sharing/*.js",
    ),
    "the client's rules, Python": (
        "chatapp/client/*.py",
        *(f"chatapp/connection/{name}.py" for name in ("facts", "delays", "record", "detector", "pacing", "quality")),
    ),
    "the table of states (with its interpreter, if any)": (
        "chatapp/connection_states.py",
        "chatapp/connection/states.py",
    ),
    "chatapp/, all": ("chatapp/*.py",),
    "headless clients": ("tests/headless/*",),
    "simulation": ("tests/simulation/*.py",),
    "vectors' tests": (
        "tests/js/*.js",
        *(f"tests/test_{name}.py" for name in ("shipped", "client", "states", "detector", "pacing", "quality")),
    ),
}


def lines(commit: str) -> dict[str, int]:
    """Lines of each file of a commit, by its path."""
    command = ["git", "grep", "-c", "", commit, "--", "static/js", "chatapp", "tests"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {path: int(count) for path, count in (line.split(":", 1)[1].rsplit(":", 1) for line in found)}


def main() -> None:
    """Print the table."""
    commits = sys.argv[1:] or ["HEAD"]
    counts = [lines(commit) for commit in commits]
    print(f"{'lines':64}" + "".join(f"{commit[:12]:>14}" for commit in commits))
    for room, patterns in ROOMS.items():
        sums = (
            sum(n for path, n in count.items() if any(fnmatch.fnmatch(path, pattern) for pattern in patterns))
            for count in counts
        )
        print(f"{room:64}" + "".join(f"{found:>14,}" for found in sums))


if __name__ == "__main__":
    main()
