"""Who may connect: this machine's own users, or whoever has the token; and no web page of somebody else.

A browser sends cookies and opens sockets for any page that it shows, so a page from elsewhere could reach a server on
localhost. Its `Origin` says whose page it is, and `Host` which name led to the server (an address that was bound anew
to 127.0.0.1 still has the name of its owner).
"""

import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


def make_token() -> str:
    """A new token that nobody can guess."""
    return secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, seen from itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", re.ASCII)


def _name_of(host: str | None) -> str:
    """The name in a `Host`, without its port; nothing if it is no host (RFC 9110, section 7.2)."""
    found = _HOST.fullmatch(host or "")
    return found["name"].strip("[]").lower() if found else ""


def _network_of(address: str) -> str:
    """Whom an address counts for: a machine of IPv4, or a network of IPv6, of whose addresses one machine has many."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return str(ipaddress.ip_network((found, 64), strict=False))
        return str(found.ipv4_mapped)
    return str(found)


@dataclass(frozen=True)
class Access:
    """The rule of a server.

    Attributes:
        host: the address that it is bound to.
        tokens: what clients must show, one of these; may be none for a loopback address alone.
        origins: origins (`https://name`) of pages that may connect, beside the server's own.
        proxies: addresses of reverse proxies, whose `X-Forwarded-For` says who the client is.
    """

    host: str
    tokens: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.tokens and not is_loopback(self.host):
            raise ValueError(f"{self.host} can be reached from other machines, so a token is needed")
        for token in self.tokens:
            if not (token and token.isascii() and token.isprintable() and " " not in token):
                raise ValueError("a token must be of ASCII letters, digits and signs, without spaces")
        for proxy in self.proxies:
            try:
                ipaddress.ip_address(proxy)
            except ValueError as error:
                raise ValueError(f"a proxy is given by its address, such as 127.0.0.1, got {proxy!r}") from error
        for origin in self.origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
                raise ValueError(f"an origin is written as https://name or https://name:port, got {origin!r}")

    def check_host(self, host: str | None) -> str | None:
        """Why a request to this `Host` is refused, None if it is not."""
        if self.tokens or is_loopback(_name_of(host)):
            return None
        return "this server is for its own machine; ask for it as http://localhost, or start it with --token"

    def check_origin(self, origin: str | None, host: str | None) -> str | None:
        """Why a socket of a page from this `Origin` is refused, None if it is not. Other programs send none."""
        if origin is None or origin in self.origins or origin in (f"http://{host}", f"https://{host}"):
            return None
        return f"pages of {origin[:200]} may not connect to this server; start it with --allow-origin to let them"

    def check_token(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
        """Why a request without the right token is refused, None if it is not."""
        if not self.tokens or self._token_of(headers, query) is not None:
            return None
        return "the token is missing or wrong; send it as `Authorization: Bearer TOKEN` or `?token=TOKEN`"

    def owners(self, peer: str, headers: Mapping[str, str], query: Mapping[str, str]) -> tuple[str, ...]:
        """Whom a client counts for in limits: its address and, where there are several tokens, its token.

        Args:
            peer: the address that the connection came from.
            headers, query: of its request, which has the right token.
        """
        forwarded = [entry.strip() for entry in headers.get("X-Forwarded-For", "").split(",")]
        address = peer
        # The last entry is the last proxy's; what stands before it may be the client's invention.
        while address in self.proxies and forwarded and forwarded[-1]:
            address = forwarded.pop()
        token = self._token_of(headers, query) if len(self.tokens) > 1 else None
        return (f"address {_network_of(address)[:64]}", *([] if token is None else [f"token {token}"]))

    def _token_of(self, headers: Mapping[str, str], query: Mapping[str, str]) -> int | None:
        """Which of the tokens a request shows, None if none."""
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = query.get("token", "")
        shown = given.strip().encode(errors="replace")
        # In constant time, or how long it takes would tell how much of a guess is right.
        right = [hmac.compare_digest(shown, token.encode()) for token in self.tokens]
        return right.index(True) if any(right) else None
