"""An OpenAI-compatible model server that says one text, over and over, at a set pace. Standard library alone.

BENCH_TOKENS_S pieces a second, of BENCH_PIECE characters each, until BENCH_CHARACTERS are said.
Usage: tokens.py PORT
"""

import asyncio
import json
import os
import sys

RATE = float(os.environ["BENCH_TOKENS_S"])
PIECE = int(os.environ["BENCH_PIECE"])
CHARACTERS = int(os.environ["BENCH_CHARACTERS"])
SECTION = """## What to look at first

A held poll needs **one** request at a time, and a proxy in between may *cut* it: look at `proxy_read_timeout` first,
then at the buffers. Most networks let WebSocket through once the upgrade's two headers are passed on.

- the proxy's log says which status the upgrade got
- the browser's network panel shows how long the socket lived
- the page's own status names the reason in plain words

```nginx
location / {
  proxy_http_version 1.1;
  proxy_set_header Upgrade $http_upgrade;
}
```

"""


def event(delta: dict[str, str], finish: str | None) -> bytes:
    """One event of the stream."""
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n".encode()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request, one answer."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        text = (SECTION * (CHARACTERS // len(SECTION) + 1))[:CHARACTERS]
        loop = asyncio.get_running_loop()
        started = loop.time()
        for number, at in enumerate(range(0, len(text), PIECE)):
            await asyncio.sleep(max(0.0, started + number / RATE - loop.time()))
            writer.write(event({"content": text[at : at + PIECE]}, None))
            await writer.drain()
        writer.write(event({}, "stop") + b"data: [DONE]\n\n")
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


asyncio.run(main())
