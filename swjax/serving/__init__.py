"""Streams for many users at once over WebSockets: pictures in, words out, and a web page that shows it."""

from swjax.serving.access import Access, make_token
from swjax.serving.engine import EngineSize, build_engine
from swjax.serving.limits import Limits
from swjax.serving.offer import Offer
from swjax.serving.server import EngineHangs, Server, ServingError, serve

__all__ = [
    "Access",
    "EngineHangs",
    "EngineSize",
    "Limits",
    "Offer",
    "Server",
    "ServingError",
    "build_engine",
    "make_token",
    "serve",
]
