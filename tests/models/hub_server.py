"""A stand-in for the Hugging Face hub: what its library asks of a server to make, fill and read a repository."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHA = 40
"""Letters of a commit's name."""


class Hub:
    """Repositories in memory: {name: {file: content}} at the newest commit."""

    def __init__(self):
        self.repositories, self.visibility = {}, {}
        self.token = None
        """What who writes must show; None: nothing."""

    def commit(self, name):
        text = json.dumps(
            {file: hashlib.sha256(content).hexdigest() for file, content in self.repositories[name].items()}
        )
        return hashlib.sha256(text.encode()).hexdigest()[:SHA]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self):
        return self.server.hub

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def log_message(self, *words):
        pass

    def _answer(self, content=b"", status=200, **headers):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"} | headers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self, code, message):
        self._answer({"error": message}, 404, X_Error_Code=code, X_Error_Message=message)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.hub.token is not None and self.headers["Authorization"] != f"Bearer {self.hub.token}":
            return self._answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.repositories:
                return self._answer({"error": "exists", "url": f"{self.address}/{name}"}, 409)
            self.hub.repositories[name], self.hub.visibility[name] = {}, asked.get("visibility")
            return self._answer({"url": f"{self.address}/{name}"})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        if match is None or match[1] not in self.hub.repositories:
            return self._missing("RepoNotFound", "Repository not found")
        if match[2] == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self._answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.hub.repositories[match[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = self.hub.commit(match[1])
        return self._answer({"success": True, "commitOid": sha, "commitUrl": f"{self.address}/{match[1]}/commit/{sha}"})

    def do_GET(self):
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/]+)", self.path)
        if match is None or match[1] not in self.hub.repositories:
            return self._missing("RepoNotFound", "Repository not found")
        sha = self.hub.commit(match[1])
        if match[2] not in ("main", sha):
            return self._missing("RevisionNotFound", "Revision not found")
        content = self.hub.repositories[match[1]].get(match[3])
        if content is None:
            return self._missing("EntryNotFound", "Entry not found")
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self._answer(content, X_Repo_Commit=sha, ETag=etag)

    do_HEAD = do_GET


@contextlib.contextmanager
def serving():
    """(`Hub`, its address) while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub, server.daemon_threads = Hub(), True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
