"""Strangers who try passwords, many at once, in a process of their own: `python strangers.py PORT COUNT ADDRESSES`.

Each comes from one of the addresses 127.1.0.1 … and tries again as soon as it is answered, until TERM; then it prints
how many answers there were of each status, as JSON.
"""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

from lab.processes import kill_group, marked_environment

TOKEN = re.compile(r'name="csrf_token" value="([^"]+)"')


@contextmanager
def strangers(port: int, count: int, addresses: int) -> Iterator[Counter[int]]:
    """Strangers at work while the block runs; afterwards the counter holds their answers by status."""
    command = [sys.executable, __file__, str(port), str(count), str(addresses)]
    environment = marked_environment() | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True, text=True)
    found: Counter[int] = Counter()
    try:
        yield found
        process.terminate()
        said, _ = process.communicate(timeout=20)
        found.update({int(status): number for status, number in json.loads(said).items()})
    finally:
        kill_group(process.pid)
        process.communicate(timeout=10)


async def ask(port: int, source: str, request: str) -> str:
    """The answer to one request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        writer.write(request.encode())
        return (await reader.read()).decode(errors="replace")
    finally:
        writer.close()


async def stranger(port: int, source: str, seen: Counter[int]) -> None:
    """One that tries for ever."""
    head = f"Host: 127.0.0.1:{port}\r\nConnection: close\r\n"
    page = await ask(port, source, f"GET /sign-in HTTP/1.1\r\n{head}\r\n")
    cookie = re.search(r"^Set-Cookie: ([^;\r]+)", page, re.M | re.I)
    token = TOKEN.search(page)
    assert cookie and token, page[:500]
    body = urlencode({"csrf_token": token[1], "email": "eve@example.org", "password": "a wrong one"})
    typed = f"Cookie: {cookie[1]}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n"
    while True:
        answer = await ask(port, source, f"POST /sign-in HTTP/1.1\r\n{head}{typed}\r\n{body}")
        seen[int(answer.split()[1]) if answer else 0] += 1


async def main(port: int, count: int, addresses: int) -> None:
    """All of them, until TERM."""
    seen: Counter[int] = Counter()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)

    async def again(source: str) -> None:
        while True:
            try:
                await stranger(port, source, seen)
            except OSError:
                seen[0] += 1
                await asyncio.sleep(0.1)

    tasks = [
        asyncio.create_task(again(f"127.1.{n % addresses // 250}.{n % addresses % 250 + 1}")) for n in range(count)
    ]
    await ended.wait()
    for task in tasks:
        task.cancel()
    print(json.dumps(seen))


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
