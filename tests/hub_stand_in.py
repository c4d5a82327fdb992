"""A stand-in of the Hugging Face hub on this machine: repositories are made, files sent and read back, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

COMMIT = "c" * 40
TOKEN = "hf_" + "notASecretOfAnybody" + "0123456789"


class Hub(ThreadingHTTPServer):
    """``repositories``: private or not, by name; ``files``: content by repository and path; ``tokens``: the headers
    that came; ``refuse``: the status with which all that is sent is refused. Weights go the way of large files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, bool] = {}
        self.files: dict[tuple[str, str], bytes] = {}
        self.large: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.asked: list[str] = []
        self.refuse = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.body()
        path, hub = unquote(self.path.partition("?")[0]), self.server
        hub.asked.append(f"POST {path}")
        hub.tokens.add(self.headers["Authorization"])
        if hub.refuse:
            self.say({"error": "no"}, hub.refuse)
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            hub.repositories[name] = wanted.get("private") is True or wanted.get("visibility") == "private"
            self.say({"url": f"{hub.address}/{name}"})
        elif path == "/api/validate-yaml":
            self.say({"warnings": [], "errors": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for one in files
            ]
            self.say({"files": modes, "commitOid": COMMIT})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.address}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self.say({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            name = "/".join(path.split("/")[3:5])
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    hub.files[name, value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[name, value["path"]] = hub.large[value["oid"]]
            self.say({"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.address}/{name}/commit/{COMMIT}"})
        else:
            self.say({"error": path}, 404)

    def do_PUT(self) -> None:
        content = self.body()
        self.server.asked.append(f"PUT {self.path}")
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.say({})

    def body(self) -> bytes:
        """Of a length that is told, or in chunks."""
        if self.headers["Content-Length"]:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = unquote(self.path.partition("?")[0]), self.server
        hub.asked.append(f"{self.command} {path}")
        hub.tokens.add(self.headers["Authorization"])
        name = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        if path == "/api/whoami-v2":
            self.say({"name": "me", "type": "user"})
        elif path.startswith("/api/models/") and name in hub.repositories:
            self.say({"id": name, "sha": COMMIT, "siblings": [], "private": hub.repositories[name]})
        elif "/resolve/" in path and name in hub.repositories:
            file = path.partition("/resolve/")[2].partition("/")[2]
            content = hub.files.get((name, file))
            if content is None:
                self.say({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                digest = hashlib.sha256(content).hexdigest()
                self.send(content, 200, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})
        else:
            self.say({}, 404, {"X-Error-Code": "RepoNotFound"})

    def say(self, values: Any, status: int = 200, more: dict[str, str] | None = None) -> None:
        self.send(json.dumps(values).encode(), status, {"Content-Type": "application/json"} | (more or {}))

    def send(self, content: bytes, status: int, more: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (more | {"Content-Length": str(len(content)), "Connection": "close"}).items():
            self.send_header(key, value)
        self.end_headers()
        self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def standing_in(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub takes for the real one, with TOKEN as the user's; ``cache``: of what is fetched."""
    for name in ("ANYRES_OFFLINE", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        patch.delenv(name, raising=False)
    patch.setenv("NO_PROXY", "*")
    patch.setenv("HF_TOKEN", TOKEN)
    with Hub() as hub:
        patch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose protocol is the hub's own
        thread = Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()
