"""Writes the configuration of an HAProxy. Pure.

A request draws a number below SLOTS, or has that of its client's address, and a map says whose number it is: so shares are exact to
one per mille, as they are for connections, and a sticky client stays where it was. A server of weight 1 may also get what its
first choice doesn't take; one of weight 0 gets nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from weft.contracts.driver.network import ServiceTarget
from weft.contracts.proxy import Listener, Proxy
from weft.drivers.network.slots import SLOTS, choose_slots

CONFIG, CHROOT, TIMES, PID = "haproxy.cfg", "root", "times.sock", "haproxy.pid"
MOST_CONNECTIONS, MOST_OF_SERVICE, MOST_OF_CLIENT = 4096, 2048, 1024
NOBODY = 65534
_SOCKET = "SOCKET"  # in a shape, in place of its name


class Rendered(NamedTuple):
    """``files`` by name, without the configuration; ``shape`` is all of it that only a reload can change."""

    config: str
    shape: str
    files: dict[str, str]


def render(proxy: Proxy, folder: Path) -> Rendered:
    head = _render_head(proxy, folder)
    parts = [(_render_listener(proxy, one, folder), one) for one in proxy.listeners]
    certificates = {one.certificate for one in proxy.listeners}
    shape = head + "".join(text for text, _ in parts)
    shape += "".join(sorted(f"# {hashlib.sha256(pem.encode()).hexdigest()}\n" for pem in certificates if pem))
    servers = {one: "".join(f"  {line}\n" for line in render_servers(one)) for _, one in parts}
    config = (head + "".join(text + servers[one] for text, one in parts)).replace(_SOCKET, name_socket(shape))
    files = {f"{name_backend(one)}.map": render_slots(one) for one in proxy.listeners}
    files |= {f"{name_backend(one)}.pem": one.certificate for one in proxy.listeners if one.certificate}
    return Rendered(config, shape, files)


def _render_head(proxy: Proxy, folder: Path) -> str:
    return f"""\
# Written by weft; changes here are lost.
global
  nbthread 1
  maxconn {MOST_CONNECTIONS}
  chroot {folder / CHROOT}
  uid {NOBODY}
  gid {NOBODY}
  stats socket {folder / _SOCKET} mode 600 level admin
  stats timeout 10s
  log /{TIMES} len 512 format raw local0
  hard-stop-after 1h
  tune.bufsize 16384
  tune.http.maxhdr 128
  ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
  mode http
  log global
  log-format "%b %s %Tr %ST"
  timeout connect 1s
  timeout queue 5s
  timeout http-request 10s
  timeout http-keep-alive 60s
  timeout client 120s
  timeout server 120s
  timeout tunnel 1h
  option redispatch 1
  option idle-close-on-response
  option dontlognull
  retries 3
  retry-on conn-failure empty-response response-timeout
  balance random
  http-reuse safe
"""


def _render_listener(proxy: Proxy, listener: Listener, folder: Path) -> str:
    name = name_backend(listener)
    tls = f" ssl crt {folder / name}.pem alpn h2,http/1.1" if listener.certificate else ""
    slot = f"src,djb2(1),mod({SLOTS})" if listener.sticky else f"rand({SLOTS})"
    return f"""\
frontend {name}
  bind {listener.address}:{listener.port} namespace {proxy.router}{tls}
  maxconn {MOST_OF_SERVICE}
  stick-table type ip size 64k expire 10m store conn_cur
  tcp-request connection track-sc0 src
  tcp-request connection reject if {{ sc0_conn_cur gt {MOST_OF_CLIENT} }}
  http-request disable-l7-retry if !{{ method GET HEAD OPTIONS }}
  http-request set-var(txn.upgrade) req.fhdr(upgrade),lower
  http-request del-header Connection
  http-request del-header Upgrade
  http-request del-header HTTP2-Settings
  http-request del-header Trailer
  http-request del-header Proxy-Connection
  http-request del-header x_forwarded_for
  http-request del-header x_forwarded_proto
  http-request set-header Connection upgrade if {{ var(txn.upgrade) -m str websocket }}
  http-request set-header Upgrade websocket if {{ var(txn.upgrade) -m str websocket }}
  http-request del-header Forwarded
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto {"https" if listener.certificate else "http"}
  default_backend {name}
backend {name}
  http-error status 503 content-type text/plain string "service {listener.name} has no endpoint that answers now\\n"
  http-error status 502 content-type text/plain string "service {listener.name}: its endpoint gave no valid answer\\n"
  http-error status 504 content-type text/plain string "service {listener.name}: its endpoint did not answer in time\\n"
  http-request set-var(txn.slot) {slot}
  use-server %[var(txn.slot),map_int({folder / name}.map,none)] if TRUE
"""


def name_socket(shape: str) -> str:
    """The file of the socket for statistics and changes. Each shape has its own: for a moment of a reload, both workers answer."""
    return f"stats-{hashlib.sha256(shape.encode()).hexdigest()[:8]}.sock"


def render_servers(listener: Listener) -> list[str]:
    return [f"server {render_server(listener, one)}" for one in listener.backends]


def render_server(listener: Listener, backend: ServiceTarget) -> str:
    """Render a server as in the configuration, and after ``add server BACKEND/``."""
    weight = 1 if backend.weight > 0 else 0
    return f"{name_server(backend.address)} {backend.address}:{listener.target_port} weight {weight}"


def name_backend(listener: Listener) -> str:
    return f"{listener.service}.{listener.port}"


def name_server(address: str) -> str:
    return f"e{address}"


def read_server(name: str) -> str:
    """The address of a server's name."""
    return name.removeprefix("e")


def render_slots(listener: Listener) -> str:
    """Render the owner of each slot: lines of a map. "" if no endpoint has a share."""
    return "".join(f"{line}\n" for line in list_slots(listener))


def list_slots(listener: Listener) -> list[str]:
    live = tuple(one for one in listener.backends if one.weight > 0)
    return [
        f"{first}:{last} {name_server(address)}" for first, last, address in choose_slots(live, sticky=listener.sticky)
    ]
