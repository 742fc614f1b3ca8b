"""The listening sockets: whoever comes is welcomed, or refused and forgotten; with nothing left for more, they rest."""

from __future__ import annotations

import select
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import ECONNABORTED
from typing import Final

import structlog

from yanchat.errors import Refused
from yanchat.gateway.admission import Admission, plain_answer
from yanchat.gateway.listening import BACKLOG
from yanchat.gateway.wire import BYTES_A_READ, BYTES_UNSENT

ACCEPTS_A_TURN: Final = 64


class Accepting:
    """Registers the sockets with the edge's epoll, and closes them at the end."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        epoll: select.epoll,
        admission: Admission,
        welcome: Callable[[socket.socket, str], None],
        plain: Callable[[], bool],
    ) -> None:
        """`welcome` takes over who is admitted, and leaves him to us when it raises; `plain`: no TLS is spoken now."""
        self._listeners = {listener.fileno(): listener for listener in listeners}
        self._epoll, self._admission, self._welcome, self._plain = epoll, admission, welcome, plain
        self._resting = False

    def begin(self) -> None:
        for fd, listener in self._listeners.items():
            listener.setblocking(False)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what it accepts has these options, too
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, BYTES_UNSENT)
            self._epoll.register(fd, select.EPOLLIN)

    def accept(self, fd: int) -> None:
        """Take some of those who wait at this descriptor, if it is one of ours."""
        listener = self._listeners.get(fd)
        if listener is not None:
            self._accept(listener, ACCEPTS_A_TURN)

    def go_on(self) -> None:
        """There may be descriptors again."""
        if self._resting:
            self._resting = False
            for fd in self._listeners:
                self._epoll.modify(fd, select.EPOLLIN)

    def stop(self, others_listen: bool) -> None:
        """Close them; whoever has connected already is taken, unless others hold the same sockets."""
        for fd, listener in self._listeners.items():
            if not others_listen:
                self._accept(listener, BACKLOG)
            self._epoll.unregister(fd)
            listener.close()
        self._listeners = {}

    def _accept(self, listener: socket.socket, most: int) -> None:
        for _ in range(most):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == ECONNABORTED:
                    continue
                structlog.get_logger().warning("edge.accept_failed", error=str(error))
                self._rest()
                return
            try:
                self._admit(sock, str(address[0]))
            except OSError as error:
                structlog.get_logger().warning("edge.accept_failed", error=str(error))
                sock.close()
            except Exception:
                structlog.get_logger().exception("edge.connection_failed", remote=address[0])
                sock.close()

    def _admit(self, sock: socket.socket, remote: str) -> None:
        sock.setblocking(False)
        try:
            self._admission.connect(remote)
        except Refused as refused:  # answered and forgotten: one too many must not cost what the others cost
            with sock, suppress(OSError):
                if self._plain():
                    sock.send(plain_answer(refused))
                sock.shutdown(socket.SHUT_WR)
                sock.recv(BYTES_A_READ)  # a socket closed with its request unread is reset, and the answer lost
            return
        self._welcome(sock, sys.intern(remote))

    def _rest(self) -> None:
        """No descriptors left, or no memory: until the next sweep."""
        self._resting = True
        for fd in self._listeners:
            self._epoll.modify(fd, 0)
