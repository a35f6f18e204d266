"""An S3 server on this machine for the tests, and a proxy that drops answers before it."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import logging
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bliss_index.storage import open_directory


@contextlib.contextmanager
def s3_server(bucket: str = "bucket", dropped: int = 0) -> Iterator[tuple[dict[str, str], str]]:
    """Start one; yield the environment that leads to it, and a function's worth of address.

    Of every `dropped` answers, one is lost after the server has done what it was asked for.
    """
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    proxy = None
    try:
        address = f"http://{host}:{port}"
        urllib.request.urlopen(urllib.request.Request(f"{address}/{bucket}", method="PUT")).close()
        if dropped:
            proxy = _proxy(port, dropped)
            address = f"http://127.0.0.1:{proxy.server_address[1]}"
        yield (
            {
                "AWS_ENDPOINT_URL": address,
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_REGION": "us-east-1",
            },
            f"s3://{bucket}",
        )
    finally:
        if proxy is not None:
            proxy.shutdown()
            proxy.server_close()
        server.stop()


def upload(folder: Path, uri: str) -> None:
    """Put all files of a folder under a prefix."""
    directory = open_directory(uri)
    for path in folder.rglob("*"):
        if path.is_file():
            directory.replace(path.relative_to(folder).as_posix(), path.read_bytes())


def _proxy(port: int, dropped: int) -> http.server.ThreadingHTTPServer:
    count = 0
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            nonlocal count
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size) if size else None
            onward = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                onward.request(self.command, self.path, body, dict(self.headers))
                answer = onward.getresponse()
                content = answer.read()
            finally:
                onward.close()
            with lock:
                count += 1
                lose = count % dropped == 0
            if lose:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on  # noqa: N815

        def log_message(self, *values: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *values: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
