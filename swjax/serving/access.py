"""Who may connect: this machine's own users, or whoever has the token; and no web page of somebody else.

A browser sends cookies and opens sockets for any page that it shows, so a page from elsewhere could reach a server on
localhost. Its `Origin` says whose page it is, and `Host` which name led to the server (an address that was bound anew
to 127.0.0.1 still has the name of its owner).
"""

import hmac
import ipaddress
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


def _name_of(host: str) -> str:
    """The name in a `Host`, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


@dataclass(frozen=True)
class Access:
    """The rule of a server.

    Attributes:
        host: the address that it is bound to.
        token: what clients must show; may be None for a loopback address alone.
        origins: origins (`https://name`) of pages that may connect, beside the server's own.
    """

    host: str
    token: str | None = None
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise ValueError(f"{self.host} can be reached from other machines, so a token is needed")
        if self.token and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise ValueError("a token must be of ASCII letters, digits and signs, without spaces")
        for origin in self.origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query:
                raise ValueError(f"an origin is written as https://name or https://name:port, got {origin!r}")

    def check_host(self, host: str) -> str | None:
        """Why a request to this `Host` is refused, None if it is not."""
        if self.token or is_loopback(_name_of(host)):
            return None
        return "this server is for its own machine; ask for it as http://localhost, or start it with --token"

    def check_origin(self, origin: str | None, host: str) -> str | None:
        """Why a socket of a page from this `Origin` is refused, None if it is not. Other programs send none."""
        if origin is None or origin in self.origins or origin in (f"http://{host}", f"https://{host}"):
            return None
        return f"pages of {origin[:200]} may not connect to this server; start it with --allow-origin to let them"

    def check_token(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
        """Why a request without the right token is refused, None if it is not."""
        if not self.token:
            return None
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            given = query.get("token", "")
        # In constant time, or how long it takes would tell how much of a guess is right.
        if hmac.compare_digest(given.strip().encode(errors="replace"), self.token.encode()):
            return None
        return "the token is missing or wrong; send it as `Authorization: Bearer TOKEN` or `?token=TOKEN`"
