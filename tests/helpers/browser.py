"""Chromium without a window, driven by its own protocol over two pipes: real clicks and keys."""

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --hide-scrollbars "
    "--remote-debugging-pipe"
).split()
PATIENCE = 60.0  # seconds: the machine may be busy


class Browser:
    """A browser with a profile of its own; `tab` opens pages in it."""

    def __init__(self) -> None:
        self.profile = tempfile.mkdtemp()
        (read_here, write_there), (read_there, write_here) = os.pipe(), os.pipe()

        def pipes() -> None:  # the protocol is on the descriptors 3 and 4
            ends = os.dup(read_there), os.dup(write_there)
            for number, end in zip((3, 4), ends):
                os.dup2(end, number)

        assert CHROMIUM is not None
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
            preexec_fn=pipes,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self.incoming = os.fdopen(read_here, "rb")
        self.outgoing = os.fdopen(write_here, "wb", buffering=0)
        self.parts: list[bytes] = []  # of messages; a zero byte ends one
        self.count = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        self.incoming.close()
        self.outgoing.close()
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **arguments: Any) -> dict[str, Any]:
        """The result of a method of the protocol; events on the way are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": arguments}
        if session is not None:
            message["sessionId"] = session
        self.outgoing.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self.next_message()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def next_message(self) -> dict[str, Any]:
        while b"\0" not in self.parts:
            some = self.incoming.read1(1 << 16)
            assert some, "Chromium has ended"
            self.parts += [part for part in re.split(b"(\0)", some) if part]
        end = self.parts.index(b"\0")
        message, self.parts = b"".join(self.parts[:end]), self.parts[end + 1 :]
        return json.loads(message)

    def tab(self, url: str, width: int = 1200, height: int = 900) -> "Tab":
        """A page of this size, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session, target)
        for domain in ("Page", "Runtime", "Log", "DOM"):
            tab.call(f"{domain}.enable")
        tab.resize(width, height)
        tab.call("Page.navigate", url=url)
        tab.wait("document.readyState === 'complete'")
        return tab


class Tab:
    """A page."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self.browser = browser
        self.session = session
        self.target = target

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **arguments)

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Another size of the window, light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def value(self, script: str) -> Any:
        """What an expression gives."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """What an expression gives, as soon as that is true."""
        end = time.monotonic() + PATIENCE
        while not (found := self.value(script)):
            assert time.monotonic() < end, (
                f"never: {script}; {self.value('document.body.innerText')}"
            )
            time.sleep(0.05)
        return found

    def text(self, selector: str) -> str:
        return self.value(f"document.querySelector({json.dumps(selector)}).textContent")

    def choose_file(self, selector: str, path: Path) -> None:
        """Chooses a file as a user does in the dialog."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path.resolve())])

    def drop_file(self, selector: str, path: Path) -> None:
        """Drags a file from outside over an element and drops it there."""
        item = {"items": [], "files": [str(path.resolve())], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            place = self.place(selector)
            self.call("Input.dispatchDragEvent", type=kind, data=item, **place)

    def paste_picture(self) -> None:
        """Puts a red picture into the browser's clipboard, and presses Ctrl+V."""
        self.browser.call(
            "Browser.grantPermissions",
            permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
            origin=self.value("location.origin"),
        )
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # else it may not write there
        self.value(
            """(async () => {
              const canvas = new OffscreenCanvas(30, 20), pen = canvas.getContext("2d");
              pen.fillStyle = "rgb(200 0 0)";
              pen.fillRect(0, 0, 30, 20);
              const blob = await canvas.convertToBlob();
              await navigator.clipboard.write([new ClipboardItem({"image/png": blob})]);
            })()"""
        )
        keys = {"key": "v", "code": "KeyV", "windowsVirtualKeyCode": 86, "modifiers": 2}
        self.call("Input.dispatchKeyEvent", type="keyDown", commands=["paste"], **keys)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def close(self) -> None:
        """Closes it, whatever it waits for."""
        self.browser.call("Target.closeTarget", targetId=self.target)

    def place(self, selector: str, across: float = 0.5, down: float = 0.5) -> dict[str, float]:
        """A place on an element, as shares of its sides, in the window's pixels."""
        query = json.dumps(selector)
        self.value(f"document.querySelector({query}).scrollIntoView({{block: 'center'}})")
        box = self.value(f"document.querySelector({query}).getBoundingClientRect().toJSON()")
        x, y = box["x"] + across * box["width"], box["y"] + down * box["height"]
        return {"x": x, "y": y}

    def mouse(self, kind: str, place: dict[str, float], buttons: int = 1) -> None:
        self.call(
            "Input.dispatchMouseEvent",
            type=kind,
            button="left",
            buttons=buttons,
            clickCount=1,
            **place,
        )

    def click(self, selector: str, across: float = 0.5, down: float = 0.5) -> None:
        place = self.place(selector, across, down)
        self.mouse("mousePressed", place)
        self.mouse("mouseReleased", place, buttons=0)

    def key(self, name: str, code: int) -> None:
        """Presses a key; `code` is its number in Windows."""
        text = {"text": " "} if name == " " else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                windowsVirtualKeyCode=code,
                **(text if kind == "keyDown" else {}),
            )

    def screenshot(self, path: Path, whole: bool = True) -> None:
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=whole, **self.clip(whole))
        path.write_bytes(base64.b64decode(taken["data"]))

    def clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {**size, "x": 0, "y": 0, "scale": 1}}

    def complaints(self) -> list[str]:
        """What the page has thrown, or the browser says is wrong with it."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found
