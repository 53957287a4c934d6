"""A headless Chromium, driven over its debugging pipe: no package is needed. Tests that ask for it skip without one."""

import base64
import json
import os
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

SERVER_ERROR = -32000


class Refused(AssertionError):
    """The browser's error for a command."""


def find():
    """Path of a Chromium; None where there is none. ``S2VFAST_CHROMIUM`` names another."""
    return os.environ.get("S2VFAST_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One window; as a context it ends with the block.

    Args:
        profile: an empty folder for it.
    """

    def __init__(self, profile):
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        words = "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage --hide-scrollbars"
        command = [find(), *words.split(), "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        # It reads commands from 3 and writes answers to 4.
        script = f'exec "$@" 3<&{commands} 4>&{answers}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command], pass_fds=(commands, answers), stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._buffer, self._number, self.events = b"", 0, []
        pages = self.send("Target.getTargets")["targetInfos"]
        target = next(info["targetId"] for info in pages if info["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait(30)
        os.close(self._commands)
        os.close(self._answers)

    _session = None

    def send(self, method, **parameters):
        """The result of a command; what happens meanwhile is in ``events``."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                content = os.read(self._answers, 1 << 20)
                assert content, "the browser has gone"
                self._buffer += content
            text, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise Refused(answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _run(self, script):
        try:
            return self.send("Runtime.evaluate", expression=script, returnByValue=True)
        except Refused as refusal:  # the page went while the script ran: another is coming
            if refusal.args[0]["code"] != SERVER_ERROR:
                raise
            return {"exceptionDetails": refusal.args[0]}

    def evaluate(self, script):
        """The value of an expression in the page."""
        result = self._run(script)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script, seconds=30):
        """Wait until an expression is true; it may fail before, as while a page is loaded."""
        deadline = time.monotonic() + seconds
        while "exceptionDetails" in (result := self._run(script)) or not result["result"].get("value"):
            assert time.monotonic() < deadline, (script, result, self._run("document.body.innerText"))
            time.sleep(0.05)

    def open(self, url, width=1280, height=900, dark=False, phone=False):
        """Open a page in a window of that size."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=url)
        self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def screenshot(self, path):
        """The page as a PNG."""
        content = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(content))
