"""Who may connect: token, host and origin."""

from __future__ import annotations

import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; media-src 'self'; worker-src 'self'; manifest-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def is_loopback(host: str) -> bool:
    """Whether listening on (or being called) ``host`` stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Gate:
    """The rules of one server.

    Attributes:
        token: what clients must present; None: nothing.
        loopback_only: the server listens on this machine alone, so a request that calls it by
            another name was led here by a foreign page (DNS rebinding).
        origins: pages of other origins that may connect, as ``scheme://host[:port]``.
    """

    token: str | None = None
    loopback_only: bool = True
    origins: tuple[str, ...] = ()

    def host_allowed(self, host: str | None) -> bool:
        """``host`` is the request's ``Host`` header."""
        if not self.loopback_only:
            return True
        name = _split(f"//{host or ''}").hostname
        return name is not None and is_loopback(name)

    def origin_allowed(self, origin: str | None, host: str | None) -> bool:
        """Browsers say which page connects, other programs do not. A page of this server (its
        origin's host is the one that was called) may, and those in ``origins``."""
        if origin is None or origin in self.origins:
            return True
        return bool(host) and _split(origin).netloc == host

    def token_allowed(self, *presented: str | None) -> bool:
        """Compares in constant time."""
        if self.token is None:
            return True
        expected = self.token.encode()
        return any(
            [
                hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected)
                for given in presented
                if given
            ]
        )


def _split(url: str) -> SplitResult:
    """Parts of a URL, all empty if it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


def bearer(authorization: str | None) -> str | None:
    """The token of an ``Authorization`` header."""
    scheme, _, value = (authorization or "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else None
