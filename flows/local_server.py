"""The place on this machine's loopback where the server listens: who has it, whether it answers, what it refuses."""

import errno
import ipaddress
import os
import socket
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

import psutil

from model.errors import InputError, printable

ANSWER_SECONDS = 5.0
FIRST_ANSWER_SECONDS = 120.0  # a server that has just started on a busy machine is slow
ON_ITS_OWN = "127.0.0.1,localhost,::1"  # what never goes through a proxy
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class LocalServer:
    """Of an address such as http://127.0.0.1:4200/api."""

    host: str
    port: int

    @property
    def page(self) -> str:
        """Where the page is: its origin, as a browser names it."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def api(self) -> str:
        return f"{self.page}/api"

    def refuse_if_taken(self) -> None:
        """Raises InputError, naming the process, where something listens there already or nothing may."""
        family, kind, protocol, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: ended ones don't count
            try:
                probe.bind(address)
            except OSError as error:
                other = "stop it, or set PREFECT_API_URL to another port"
                if error.errno == errno.EADDRINUSE:
                    taken = f"{self._holder()} listens on port {self.port} already; {other}"
                    raise InputError(f"{taken}, as in http://{self.host}:{self.port + 1}/api") from error
                raise InputError(
                    f"port {self.port} of {self.host} can't be used ({error.strerror}); {other}"
                ) from error

    def is_of(self, process: int) -> bool:
        """Whether it is this process, or one that it started, that listens there."""
        listener = self._listener()
        try:
            return listener is not None and process in {listener, *(p.pid for p in psutil.Process(listener).parents())}
        except psutil.NoSuchProcess:
            return False

    def answers(self) -> bool:
        try:
            with _DIRECT.open(f"{self.api}/health", timeout=ANSWER_SECONDS):
                return True
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def refuses_strangers(self) -> bool:
        """Whether a request without the secret is turned away."""
        try:
            with _DIRECT.open(f"{self.api}/admin/version", timeout=FIRST_ANSWER_SECONDS):
                return False
        except urllib.error.HTTPError as error:
            return error.code == HTTPStatus.UNAUTHORIZED

    def _listener(self) -> int | None:
        """The id of the process that listens there; None where there is none, or where it is another user's."""
        hosts = {self.host, "0.0.0.0", "::"}
        found = [
            connection
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
            and connection.laddr.port == self.port
            and connection.laddr.ip in hosts
        ]
        return next((connection.pid for connection in found if connection.pid), None)

    def _holder(self) -> str:
        process = self._listener()
        try:
            words = psutil.Process(process).cmdline() if process else []
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            words = []
        if process is None:
            return "a process of another user"
        return f"process {process} ({printable(' '.join(words))[:120] or 'its command is hidden'})"


def local_server(url: str) -> LocalServer:
    """Raises InputError for an address that is not this machine's loopback alone."""
    with suppress(ValueError):  # no port, no address
        address = urlsplit(url)
        port, loopback = address.port or 4200, ipaddress.ip_address(address.hostname or "").is_loopback
        if address.scheme == "http" and loopback and address.path.rstrip("/") == "/api":
            return LocalServer(str(address.hostname), port)
    raise InputError(
        f"PREFECT_API_URL is {url}; expected http://127.0.0.1:PORT/api, since what is started here is for this machine "
        "alone; docs/operating.md says how others may reach a server"
    )


def bypass_proxies() -> bool:
    """Let neither this process nor those that it starts send what is for the loopback, the secret with it, to a proxy.

    Returns whether they would have: whether other terminals need the same, NO_PROXY set to ON_ITS_OWN.
    """
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    proxied = "http" in urllib.request.getproxies() and not urllib.request.proxy_bypass("127.0.0.1")
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [others, ON_ITS_OWN]))
    return bool(proxied)
