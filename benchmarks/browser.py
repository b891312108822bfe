"""A real browser: pictures of pages, and a tab that is driven by its keyboard."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

__all__ = ["CHROMIUM", "Browser", "Tab"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--proxy-server=127.0.0.1:9",
)

KEYS = {"Tab": 9, "Enter": 13, " ": 32, "Backspace": 8, "ArrowDown": 40}


@dataclass(frozen=True)
class Browser:
    """A browser without a window and without a network."""

    folder: Path

    def run(self, page: Path, width: int, *options: str) -> subprocess.CompletedProcess[str]:
        assert CHROMIUM is not None
        return subprocess.run(
            [
                CHROMIUM,
                *OPTIONS,
                f"--user-data-dir={self.folder / 'profile'}",
                "--enable-logging=stderr",
                "--v=0",
                f"--window-size={width},3000",
                *options,
                page.resolve().as_uri(),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=180,
        )

    @contextlib.contextmanager
    def tab(self, page: Path, width: int, height: int = 900) -> Iterator[Tab]:
        """Open a page in a tab that can be driven; what it complains of is kept."""
        assert CHROMIUM is not None
        process = subprocess.Popen(
            [
                CHROMIUM, *OPTIONS, f"--user-data-dir={self.folder / 'driven'}",
                "--remote-debugging-port=0", "about:blank",
            ],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            address = ""
            for line in process.stderr:
                if found := re.search(r"listening on ws://([^/]+)/", line):
                    address = found[1]
                    break
            assert address, "the browser did not start"
            with asyncio.Runner() as runner:
                tab = Tab(runner)
                runner.run(tab.connect(address))
                try:
                    tab.open(page, width, height)
                    yield tab
                finally:
                    runner.run(tab.close())
        finally:
            process.terminate()
            process.wait(timeout=30)


@dataclass
class Tab:
    """A tab, by Chrome's DevTools protocol."""

    runner: asyncio.Runner
    complaints: list[str] = field(default_factory=list)
    """What the page wrote to its console, and what it was refused."""
    _session: Any = None
    _socket: Any = None
    _number: int = 0

    async def connect(self, address: str) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://{address}/json") as answer:
            [first, *_] = [tab for tab in await answer.json() if tab["type"] == "page"]
        url = first["webSocketDebuggerUrl"]
        self._socket = await self._session.ws_connect(url, max_msg_size=1 << 28)

    async def close(self) -> None:
        await self._session.close()

    def do(self, method: str, **values: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        return self.runner.run(self._do(method, values))

    async def _do(self, method: str, values: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_str(
            json.dumps({"id": self._number, "method": method, "params": values})
        )
        while True:
            message = json.loads((await self._socket.receive(timeout=60)).data)
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(json.dumps(message["params"]))
            if message.get("method") == "Runtime.consoleAPICalled":
                self.complaints.append(json.dumps(message["params"]["args"]))
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                found: dict[str, Any] = message["result"]
                return found

    def open(self, page: Path, width: int, height: int) -> None:
        """Open a page at a width that no window, but a phone may have."""
        for domain in ("Log", "Runtime", "Page"):
            self.do(f"{domain}.enable")
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        self.do("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + 60
        while self.ask("document.readyState") != "complete":
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.05)

    def ask(self, expression: str) -> Any:
        """Give the value of an expression of the page."""
        found = self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key of the keyboard."""
        code = KEYS[key]
        text = {"Enter": "\r", " ": " "}.get(key)
        for _ in range(times):
            pressed = {"key": key, "windowsVirtualKeyCode": code, "nativeVirtualKeyCode": code}
            down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
            self.do("Input.dispatchKeyEvent", **down, **pressed)
            self.do("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def write(self, text: str) -> None:
        """Write into what has the focus."""
        self.do("Input.insertText", text=text)

    def tab_to(self, selector: str, most: int = 120) -> None:
        """Press Tab until an element has the focus."""
        for _ in range(most):
            self.press("Tab")
            if self.ask(f"document.activeElement.matches({json.dumps(selector)})"):
                return
        raise AssertionError(f"no Tab leads to {selector}")

    def picture(self) -> bytes:
        """Take a picture of what is seen."""
        data = self.do("Page.captureScreenshot", format="png")["data"]
        return base64.b64decode(data)
