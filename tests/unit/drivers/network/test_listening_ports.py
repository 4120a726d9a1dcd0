"""What the kernel's tables of sockets say of who listens on a node."""

from __future__ import annotations

from weft.contracts.driver.network import Held
from weft.drivers.network.bridge.listening_ports import read_table

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(local: str, state: str, far: str = "00000000:0000") -> str:
    return f"   0: {local} {far} {state} 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n"


def test_who_listens_is_told_by_address_and_who_is_connected_is_not() -> None:
    text = HEAD + row("00000000:0016", "0A") + row("0100007F:1F90", "0A") + row("0100007F:1F90", "01", "0200007F:9999")
    assert read_table(text, "tcp") == {Held("tcp", 22), Held("tcp", 8080, "127.0.0.1")}
    text = HEAD + row("0D9A6A0A:20FD", "07") + row("0D9A6A0A:C001", "01", "08080808:0035")
    assert read_table(text, "udp") == {Held("udp", 8445, "10.106.154.13")}


def test_a_socket_of_ipv6_counts_where_packets_of_ipv4_come_to_it() -> None:
    anywhere, mapped, local = "0" * 32, "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"
    text = HEAD + row(f"{anywhere}:0016", "0A") + row(f"{mapped}:0050", "0A") + row(f"{local}:0277", "0A")
    assert read_table(text, "tcp") == {Held("tcp", 22), Held("tcp", 80, "127.0.0.1")}
