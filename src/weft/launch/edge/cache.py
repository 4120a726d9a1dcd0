"""The cache to which a gateway writes the state of its devices, by its settings. Only a gateway that has one loads what it
takes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.contracts.clock import Clock
from weft.launch.edge.configuration import NO_CACHE, SQLITE_CACHE, Settings

if TYPE_CHECKING:
    from weft.contracts.edge.cache import Cache
    from weft.edge.cache.publisher import TwinPublisher


def make_cache(settings: Settings, clock: Clock) -> Cache | None:
    """None: there is none. Nothing is opened or connected before its first use."""
    if settings.cache == NO_CACHE:
        return None
    if settings.cache == SQLITE_CACHE:
        return _as_cache(_import("sqlite.driver").SqliteCache(settings.state, clock))
    password, authority = settings.cache_password, settings.cache_authority
    return _as_cache(
        _import("redis.driver").RedisCache(
            _import("redis.place").read_place(settings.cache),
            clock,
            password=Path(password) if password else None,
            authority=Path(authority) if authority else None,
        )
    )


def make_publisher(cache: Cache | None, settings: Settings, clock: Clock, node: str) -> TwinPublisher | None:
    if cache is None:
        return None
    publishers: Any = importlib.import_module("weft.edge.cache.publisher")
    made: TwinPublisher = publishers.TwinPublisher(cache, clock, node, settings.cache_seconds)
    return made


def _as_cache(made: Cache) -> Cache:
    return made


def _import(name: str) -> Any:
    return importlib.import_module(f"weft.drivers.cache.{name}")
