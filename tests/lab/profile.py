"""A Chromium with a profile on disk: it can be killed and started again, as a person's own browser is."""

import contextlib
import os
import signal
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page

from lab.browser import ARGUMENTS, CHROMIUM, RECORDER
from lab.processes import marked_environment, wait_for


class Profile:
    """One person's browser; `open` starts it and returns its page, `kill9` ends it as a crash does."""

    def __init__(self, browser: Browser, directory: Path) -> None:
        self._browser = browser
        self._directory = directory
        self._context: BrowserContext | None = None

    def open(self) -> Page:
        """A page of the running browser, with the recorder in it; starts the browser."""
        self._context = self._browser.browser_type.launch_persistent_context(
            str(self._directory), executable_path=CHROMIUM, args=ARGUMENTS, env=dict(marked_environment())
        )
        self._context.set_default_timeout(15_000)
        self._context.add_init_script(RECORDER)
        return self._context.pages[0]

    def kill9(self) -> None:
        """SIGKILL for its main process; returns once none of its processes is left."""
        [pid] = [pid for pid, command in self._processes() if b"--type=" not in command and b"crashpad" not in command]
        os.kill(pid, signal.SIGKILL)
        context, self._context = self._context, None
        wait_for(lambda: not self._processes(), 10, "the browser is gone", every=0.02)
        if context is not None:
            with contextlib.suppress(Exception):  # it cannot say goodbye
                context.close()

    def close(self) -> None:
        """Ends it in order, if it runs."""
        context, self._context = self._context, None
        if context is not None:
            context.close()

    def _processes(self) -> list[tuple[int, bytes]]:
        wanted = f"--user-data-dir={self._directory}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended while we looked
                command = (entry / "cmdline").read_bytes()
                if wanted in command:
                    found.append((int(entry.name), command))
        return found
