"""A server that speaks the part of the hub's protocol by which files are fetched, for tests."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Hub:
    """Repositories that are folders: ``owner/name`` -> revision -> (commit, folder)."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.repositories: dict[str, dict[str, tuple[str, Path]]] = {}
        self.requested: list[str] = []

    def publish(self, repository: str, folder: Path, *revisions: str) -> str:
        """Serve a folder under revisions, and return its commit."""
        commit = hashlib.sha1(str(folder).encode()).hexdigest()
        known = self.repositories.setdefault(repository, {})
        for revision in (commit, *revisions):
            known[revision] = (commit, folder)
        return commit


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Yield a hub on this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            # /owner/name/resolve/revision/path
            owner, name, _, revision, *parts = self.path.strip("/").split("/")
            repository, file = f"{owner}/{name}", "/".join(parts)
            hub.requested.append(file)
            known = hub.repositories.get(repository)
            if known is None:
                return self._refuse("RepoNotFound")
            if revision not in known:
                return self._refuse("RevisionNotFound")
            commit, folder = known[revision]
            path = folder / file
            if not path.is_file():
                return self._refuse("EntryNotFound", commit)
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)
            return None

        def _refuse(self, code: str, commit: str = "") -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            if commit:
                self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep the tests' output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
