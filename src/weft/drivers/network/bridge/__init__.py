"""Tenant networks from what every Linux has: bridge, VXLAN, a router namespace, nftables and dnsmasq."""
