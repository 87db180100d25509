"""A web server on 127.0.0.1 that serves files, well or in some bad way."""

import dataclasses
from http import server
import socket
import threading
import time


@dataclasses.dataclass
class Page:
  """What is served at one address, with headers of its own."""

  content: bytes = b''
  status: int = 200
  headers: dict[str, str] = dataclasses.field(default_factory=dict)


class WebServer:
  """Serves the same content at every address, and remembers what was asked.

  Attributes:
    root: the address without a path.
    url: of the file.
    content: of the file.
    asked: a pair for each request: its method, and its `Range` or ''.
    paths: of each request.
    pages: by path, what is served there instead.
    headers: that every answer has beside.
    status: answered in place of the content, where it is not 200.
    refuses_head: whether HEAD gets 405.
    knows_ranges: whether `Range` is heeded.
    cut_after: bytes after which each answer ends early.
    stall_after: bytes after which an answer stops without an end, once.
    bytes_per_second: how fast it is.
  """

  def __init__(self, content: bytes):
    self.content, self.asked, self.paths = content, [], []
    self.pages, self.headers = {}, {}
    self.status, self.refuses_head, self.knows_ranges = 200, False, True
    self.cut_after = self.stall_after = self.bytes_per_second = None
    self._stop = threading.Event()
    self._server = server.ThreadingHTTPServer(('127.0.0.1', 0), _handler(self))
    self._server.daemon_threads = True
    self.root = f'http://127.0.0.1:{self._server.server_port}'
    self.url = f'{self.root}/weights.pth'

  def __enter__(self) -> 'WebServer':
    threading.Thread(target=self._server.serve_forever, args=(0.01,),
                     daemon=True).start()
    return self

  def __exit__(self, *_) -> None:
    self._stop.set()
    self._server.shutdown()
    self._server.server_close()

  def answer(self, handler: server.BaseHTTPRequestHandler) -> None:
    """Answers a request as the attributes say."""
    head, wanted = handler.command == 'HEAD', handler.headers.get('Range', '')
    self.asked.append((handler.command, wanted))
    self.paths.append(handler.path)
    page = self.pages.get(handler.path, Page(self.content, self.status))
    status = 405 if head and self.refuses_head else page.status
    first, last = 0, len(page.content) - 1
    if status == 200 and wanted and self.knows_ranges:
      begin, _, end = wanted.removeprefix('bytes=').partition('-')
      first, last = int(begin), min(last, int(end or last))
      status = 206 if first <= last else 416
    body = page.content[first:last + 1] if status < 300 else b'no\n'
    handler.send_response(status)
    handler.send_header('Content-Length', str(len(body)))
    if status == 206:
      handler.send_header('Content-Range',
                          f'bytes {first}-{last}/{len(page.content)}')
    for name, value in {**self.headers, **page.headers}.items():
      handler.send_header(name, value)
    handler.end_headers()
    if not head:
      self._send(handler, body)

  def _send(self, handler: server.BaseHTTPRequestHandler, body: bytes) -> None:
    stall_after, self.stall_after = self.stall_after, None
    for limit in (self.cut_after, stall_after):
      body = body if limit is None else body[:limit]
    part = len(body) or 1
    if self.bytes_per_second is not None:
      part = max(1, self.bytes_per_second // 50)
    for start in range(0, len(body), part):
      handler.wfile.write(body[start:start + part])
      if self.bytes_per_second is not None:
        time.sleep(0.02)
    if stall_after is not None:
      self._stop.wait(60)


def _handler(web_server: WebServer) -> type[server.BaseHTTPRequestHandler]:
  class Handler(server.BaseHTTPRequestHandler):

    def do_GET(self):  # pylint: disable=invalid-name
      try:
        web_server.answer(self)
      except ConnectionError:  # Who asked has gone.
        pass

    do_HEAD = do_GET

    def log_message(self, *_):
      pass

  return Handler


class Silence:
  """An address that never answers; it accepts the connection, or not even that.

  Attributes:
    url: of a file there.
  """

  def __init__(self, accepts: bool):
    self._socket = socket.create_server(('127.0.0.1', 0), backlog=0)
    port = self._socket.getsockname()[1]
    self.url = f'http://127.0.0.1:{port}/weights.pth'
    # The system accepts on the program's behalf until the backlog is full.
    self._others = [] if accepts else [self._knock(port) for _ in range(8)]

  def _knock(self, port: int) -> socket.socket:
    knocking = socket.socket()
    knocking.setblocking(False)
    knocking.connect_ex(('127.0.0.1', port))
    return knocking

  def __enter__(self) -> 'Silence':
    return self

  def __exit__(self, *_) -> None:
    for s in (self._socket, *self._others):
      s.close()


def closed_url() -> str:
  """An address that refuses the connection."""
  with socket.create_server(('127.0.0.1', 0)) as s:
    return f'http://127.0.0.1:{s.getsockname()[1]}/weights.pth'
