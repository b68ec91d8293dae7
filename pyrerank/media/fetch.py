"""Fetching: reads the bytes behind http(s) URLs, for callers who turned it on.

Somebody else wrote the URL of a request. So a fetch is bounded in bytes, seconds and redirects, and
it connects to public addresses only, which is checked after every resolution of a name. It uses no
proxy of the environment, because behind one nobody knows the address.
"""

from __future__ import annotations

import http.client
import ipaddress
import math
import numbers
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pyrerank.checks import check_flag, check_int

# The part of IPv6 that is given out to networks; older Pythons call much of the rest global, too.
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# RFC 6052: these stand for an IPv4 address behind a translator, and that may be a private one.
NAT64 = ipaddress.ip_network("64:ff9b::/96")
REDIRECTS = (301, 302, 303, 307, 308)
HOST = re.compile(r"[^\s:/?#@*\[\]]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(%\w+)?")  # or an IPv6 address
LONGEST = 200  # characters of a message that are somebody else's


@dataclass(frozen=True)
class Fetcher:
    """Fetches http(s) URLs: ``Fetcher()(url)`` is the body, bytes.

    Attributes:
        max_bytes: the most bytes that a body may have.
        seconds: the most that one fetch may take with all its redirects, name resolution aside.
        redirects: the most redirects that are followed.
        hosts: the only host names that may be asked, by redirects too, on any port; None allows
            any.
        private: whether addresses that are not public (loopback, link-local, ...) are allowed.

    Raises:
        ValueError: a call met one of these limits, another scheme, a status other than 200, a body
            that is incomplete or compressed, or an error of the network; the message shows no
            query string.
        ValueError, TypeError: the fetcher is made with anything but the above.
    """

    max_bytes: int = 32 * 2**20
    seconds: float = 20.0
    redirects: int = 3
    hosts: Iterable[str] | None = None
    private: bool = False

    def __post_init__(self) -> None:
        for name, least in ("max_bytes", 1), ("redirects", 0):
            number = check_int(name, getattr(self, name), f"an int from {least} up", least)
            object.__setattr__(self, name, number)
        is_number = isinstance(self.seconds, numbers.Real) and not isinstance(self.seconds, bool)
        if not (is_number and 0 < self.seconds < math.inf):
            raise ValueError(f"seconds must be a number above 0, got {self.seconds!r}")
        check_flag("private", self.private)
        if self.hosts is not None:
            object.__setattr__(self, "hosts", _host_names(self.hosts))

    def __call__(self, url: str) -> bytes:
        deadline = time.monotonic() + self.seconds
        for _ in range(self.redirects + 1):
            parts = self._checked(url)
            shown = f"{parts.scheme}://{parts.netloc}{parts.path}"[:LONGEST]
            try:
                body, location = self._get(parts, deadline)
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                if time.monotonic() >= deadline:
                    raise ValueError(f"{shown} took over {self.seconds:g} seconds") from error
                why = str(error)[:LONGEST] or type(error).__name__
                raise ValueError(f"{shown} cannot be fetched: {why}") from error
            except ValueError as error:
                raise ValueError(f"{shown} {error}") from error
            if location is None:
                return body
            url = urljoin(url, location)
        raise ValueError(f"{shown} redirects again, after {self.redirects} redirects")

    def _checked(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port  # raises for a port that is no number
        except ValueError as error:
            raise ValueError(f"not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError(f"not an http(s) URL with a host (its scheme: {parts.scheme!r})")
        if "@" in parts.netloc:
            raise ValueError("a URL with a user name or password in it is not fetched")
        if self.hosts is not None and host not in self.hosts:
            raise ValueError(f"the host {host!r} is not one of the allowed hosts")
        return parts._replace(
            path=quote(parts.path or "/", safe="/%:@!$&'()*+,;=~"),
            query=quote(parts.query, safe="/%:@!$&'()*+,;=~?"),
        )

    def _get(self, parts: SplitResult, deadline: float) -> tuple[bytes, str | None]:
        """Makes one request; returns its body, or the location that it redirects to."""
        with self._connect(parts, deadline) as plain, _secured(plain, parts) as connected:
            # each read from a slow sender may be in time, so the whole has a clock of its own
            timer = threading.Timer(deadline - time.monotonic(), _shut, args=(connected,))
            timer.start()
            try:
                answer = self._talk(connected, parts)
            finally:
                timer.cancel()
        if time.monotonic() >= deadline:  # then it may be the timer that ended the body
            raise TimeoutError
        return answer

    def _talk(self, connected: socket.socket, parts: SplitResult) -> tuple[bytes, str | None]:
        if isinstance(connected, ssl.SSLSocket):
            connected.do_handshake()
        connection = http.client.HTTPConnection(parts.netloc)
        connection.sock = connected
        target = parts.path + ("?" + parts.query if parts.query else "")
        headers = {"User-Agent": "pyrerank", "Accept-Encoding": "identity"}
        connection.request("GET", target, headers=headers)
        with connection.getresponse() as response:
            location = response.getheader("Location")
            if response.status in REDIRECTS and location:
                return b"", location
            if response.status != 200:
                phrase = http.client.responses.get(response.status, "")  # not the server's own
                raise ValueError(f"answered {response.status} {phrase}".rstrip())
            if response.getheader("Content-Encoding", "identity") != "identity":
                raise ValueError("answered with a compressed body, which was not asked for")
            if (response.length or 0) > self.max_bytes:
                raise ValueError(f"has {response.length} bytes, over the limit of {self.max_bytes}")
            # read(limit) would have no limit, if a chunk says that it has -1 bytes
            body = bytearray()
            while piece := response.read1(2**16):
                body += piece
                if len(body) > self.max_bytes:
                    raise ValueError(f"has more bytes than the limit of {self.max_bytes}")
            if response.length:
                raise ValueError(f"ended {response.length} bytes early")
            return bytes(body), None

    def _connect(self, parts: SplitResult, deadline: float) -> socket.socket:
        """Connects to an address of the host; all of its addresses must be allowed."""
        assert parts.hostname is not None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        for *_, address in found:
            if not (self.private or _is_public(str(address[0]))):
                raise ValueError(
                    f"is at {address[0]}, not a public address; Fetcher(private=True) allows it"
                )
        error = OSError("the name has no address")
        for family, kind, protocol, _, address in found:
            connected = socket.socket(family, kind, protocol)
            connected.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connected.connect(address)
                return connected
            except OSError as failed:
                connected.close()
                error = failed
        raise error


def _secured(plain: socket.socket, parts: SplitResult) -> socket.socket:
    if parts.scheme == "http":
        return plain
    return ssl.create_default_context().wrap_socket(
        plain, server_hostname=parts.hostname, do_handshake_on_connect=False
    )


def _host_names(hosts: object) -> frozenset[str]:
    """The hosts in lower case, if each could be asked."""
    wanted = "hosts must be a list of host names"
    if isinstance(hosts, (str, bytes)) or not isinstance(hosts, Iterable):
        raise TypeError(f"{wanted}, got the {type(hosts).__name__} {hosts!r}")
    listed = list(hosts)
    for host in listed:
        if not isinstance(host, str):
            raise TypeError(f"{wanted}, got {host!r} among them")
        if not HOST.fullmatch(host):
            raise ValueError(
                f"hosts: {host!r} is no host name; give one without scheme, port, path, brackets "
                "and wildcards"
            )
    return frozenset(host.lower() for host in listed)


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(str(inner))
        if ip not in GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast


def _shut(connected: socket.socket) -> None:
    """Ends a connection that another thread reads, as `ssl.SSLSocket.shutdown` must not."""
    with suppress(OSError):  # it had ended by itself
        socket.socket.shutdown(connected, socket.SHUT_RDWR)
