"""A headless Chromium, spoken to through two pipes in its DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from html import unescape
from pathlib import Path
from typing import Any, TypeVar

import pytest

DESKTOP, PHONE = (1280, 900), (390, 844)
PATIENCE_S = 60.0

T = TypeVar("T")


def chromium() -> str:
    """Its path; a test that asks for it is skipped without one."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is needed to look at pages; apt-get install chromium")
        pytest.skip("chromium is not installed")
    return found


class Browser:
    """One tab.

    Args:
        home: An empty folder, for its files.

    Attributes:
        complaints: What it said of pages: errors, warnings, violations of their policy, answers
            of 400 and above.
    """

    def __init__(self, home: Path) -> None:
        self.complaints: list[str] = []
        self._home = home
        self._last = 0
        self._rest = b""
        self._loaded: set[str] = set()

    def __enter__(self) -> Browser:
        # It reads commands from its descriptor 3 and answers on 4.
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        options += [f"--user-data-dir={self._home}", "--no-first-run", "--hide-scrollbars"]
        # Neither number may be one that the other `dup2` overwrites.
        script = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "-", str(theirs_in), str(theirs_out), chromium(), *options],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = None
        target = self._say("Target.createTarget", url="about:blank")["targetId"]
        attached = self._say("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._say(f"{domain}.enable")
        self._say("Page.setLifecycleEventsEnabled", enabled=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def size(self, width: int, height: int) -> None:
        """What the tab shows; narrow ones are phones."""
        self._say(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def dark(self, on: bool) -> None:
        """Whether the machine is set to dark."""
        value = "dark" if on else "light"
        self._say(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": value}],
        )

    def scripts(self, on: bool) -> None:
        """Whether pages may run theirs."""
        self._say("Emulation.setScriptExecutionDisabled", value=not on)

    def open(self, url: str) -> None:
        """Go to a page, and wait until it is there."""
        loader = self._say("Page.navigate", url=url)["loaderId"]
        self.wait(lambda: loader in self._loaded, url)

    def submit(self, form: str, values: Mapping[str, str]) -> None:
        """Fill in the form that a selector finds, send it, and wait for what follows."""
        before = len(self._loaded)
        find = f"document.querySelector({json.dumps(form)})"
        for name, value in values.items():
            self.eval(f"{find}.elements[{json.dumps(name)}].value = {json.dumps(value)}")
        self.eval(f"{find}.requestSubmit()")
        self.wait(lambda: len(self._loaded) > before, f"what follows {form}")

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        codes = {"Tab": 9, "Enter": 13}
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if kind == "keyDown" and key == "Enter" else {}
            self._say(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
                **text,
            )

    def text(self) -> str:
        """What a person reads; the page's own scripts need not run."""
        root = self._say("DOM.getDocument", depth=0)["root"]["nodeId"]
        body = self._say("DOM.querySelector", nodeId=root, selector="body")["nodeId"]
        html = self._say("DOM.getOuterHTML", nodeId=body)["outerHTML"]
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())

    def eval(self, code: str) -> Any:
        """The value of a JavaScript expression in the page."""
        said = self._say("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in said:
            raise AssertionError(said["exceptionDetails"])
        return said["result"].get("value")

    def wait(self, condition: Callable[[], T], what: str) -> T:
        """Until a condition is true; its value."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert time.monotonic() < deadline, f"waited too long for {what}"
            self._hear(0.05)
        return found

    def picture(self, out: Path, whole: bool = True) -> Path:
        """A PNG of the page, or of what the tab shows of it."""
        said = self._say("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        out.write_bytes(base64.b64decode(said["data"]))
        return out

    def _say(self, method: str, **params: Any) -> Any:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for answer in self._hear(1.0):
                if answer.get("id") == self._last:
                    assert "error" not in answer, answer["error"]
                    return answer["result"]
        raise AssertionError(f"chromium does not answer {method}")

    def _hear(self, patience_s: float) -> list[dict[str, Any]]:
        """What has come, or comes soon; what it complains of is noted."""
        if not select.select([self._in], [], [], patience_s)[0]:
            return []
        came = os.read(self._in, 1 << 20)
        assert came, "chromium has ended"
        *whole, self._rest = (self._rest + came).split(b"\0")
        messages = [json.loads(text) for text in whole]
        for message in messages:
            self._note(message.get("method", ""), message.get("params", {}))
        return messages

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Page.lifecycleEvent" and told["name"] == "load":
            self._loaded.add(told["loaderId"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.complaints.append(str(told["args"]))
        elif event == "Log.entryAdded":
            self.complaints.append(f"{told['entry']['text']} ({told['entry'].get('url')})")
