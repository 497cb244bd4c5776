"""fbtftp's static file server as its documentation shows it, for the benchmark.

python -m tests.benchmarks.fbtftp_static ADDRESS PORT ROOT
"""

from __future__ import annotations

import os
import sys

from fbtftp.base_handler import BaseHandler, ResponseData
from fbtftp.base_server import BaseServer


class File(ResponseData):
    def __init__(self, path: str) -> None:
        self._size = os.stat(path).st_size
        self._reader = open(path, "rb")  # noqa: SIM115 - fbtftp calls close

    def read(self, n: int) -> bytes:
        return self._reader.read(n)

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        self._reader.close()


class Handler(BaseHandler):
    def __init__(self, server_addr, peer, path, options, root, stats_callback):  # type: ignore[no-untyped-def]
        self._root = root
        super().__init__(server_addr, peer, path, options, stats_callback)

    def get_response_data(self) -> ResponseData:
        return File(os.path.join(self._root, self._path))


class Server(BaseServer):
    def __init__(self, address: str, port: int, root: str) -> None:
        self._root = root
        super().__init__(address, port, retries=3, timeout=5)

    def get_handler(self, server_addr, peer, path, options):  # type: ignore[no-untyped-def]
        return Handler(server_addr, peer, path, options, self._root, lambda _: None)


if __name__ == "__main__":
    server = Server(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    try:
        server.run()
    finally:
        server.close()
