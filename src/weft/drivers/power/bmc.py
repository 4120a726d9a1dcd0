"""The driver for the BMC at a URL."""

from __future__ import annotations

from collections.abc import Mapping

from weft.contracts.machine.power import PowerDriver
from weft.drivers.power.ipmi import Ipmi
from weft.drivers.power.redfish import Redfish
from weft.kinds.parts.node.power import FINGERPRINT, PASSWORD, USER, BmcAddress


def open_bmc(address: BmcAddress, values: Mapping[str, str]) -> PowerDriver:
    """``values`` are those of its secret, by key."""
    user, password = values.get(USER, ""), values.get(PASSWORD, "")
    if address.protocol == "ipmi":
        return Ipmi(address.host, address.port, user, password)
    return Redfish(address.host, address.port, address.path, user, password, values.get(FINGERPRINT, ""))
