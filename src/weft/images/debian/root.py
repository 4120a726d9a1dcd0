"""Changes that make a fresh Debian tree weft's debian-12: files put over it, units switched on and off. Writes into the tree.

An emulated CPU starts each process in tens of milliseconds, so whatever a guest without that hardware, or without a
second boot, has no use for is masked; each line of MASKED was measured to cost boot time.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT_LABEL = "debian-root"
STAGES = "usr/local/lib/weft/cloud-init-stages"
RENEWED = "usr/local/lib/weft/renewed"  # weft's agent runs it
WARM = "usr/local/lib/weft/warm"  # before the machine is saved as a template
_RUN_STAGES = f"[Service]\nExecStart=\nExecStart=/usr/bin/python3 /{STAGES}"

MASKED = (
    "dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount", "modprobe@.service", "systemd-pstore.service", "systemd-binfmt.service",
    "proc-sys-fs-binfmt_misc.automount", "systemd-update-utmp.service", "systemd-update-utmp-runlevel.service",
    "systemd-network-generator.service", "systemd-journal-flush.service",
    "kmod-static-nodes.service", "systemd-machine-id-commit.service", "systemd-boot-system-token.service",
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "remote-fs.target", "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path", "cloud-init-hotplugd.socket", "systemd-rfkill.socket",
)  # fmt: skip
REMOVED = (
    "etc/hostname", "etc/resolv.conf", "etc/systemd/system/sshd.service",
    "etc/systemd/system/multi-user.target.wants/ssh.service", "var/lib/dbus/machine-id",
    "etc/systemd/system/sysinit.target.wants/systemd-pstore.service",
    "etc/systemd/system/multi-user.target.wants/e2scrub_reap.service",
    "etc/systemd/system/sysinit.target.wants/systemd-resolved.service",
)  # fmt: skip
WANTED = {
    "sockets.target": ("ssh.socket",),
    "multi-user.target": (
        "systemd-networkd.service",
        "systemd-resolved.service",
        "systemd-networkd-wait-online.service",
    ),
    "network-online.target": ("systemd-networkd-wait-online.service",),
}
SUBSYSTEMS = ("virtio-ports", "net", "block", "virtio", "pci", "scsi", "input", "drm", "graphics", "rtc")
FILES = {
    "etc/machine-id": "",  # filled at the first boot, without the presets that a missing one asks for
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/fstab": f"LABEL={ROOT_LABEL} / ext4 noatime,x-systemd.growfs 0 0\n",
    "etc/systemd/network/80-dhcp.network": (
        "[Match]\nName=en* eth*\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n\n"
        "[DHCPv4]\nUseMTU=yes\nUseDomains=yes\nUseHostname=no\nClientIdentifier=mac\n"
    ),
    "etc/repart.d/50-root.conf": "[Partition]\nType=root\n",
    # Only what a guest may have: an event for each of hundreds of kernel objects costs seconds.
    "etc/systemd/system/systemd-udev-trigger.service.d/few.conf": (
        "[Service]\nExecStart=\n"
        "ExecStart=-udevadm trigger --type=devices --action=add --prioritized-subsystem=virtio-ports,net,block"
        + "".join(f" --subsystem-match={name}" for name in SUBSYSTEMS)
        + "\nExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=tty --sysname-match=ttyS0\n"
    ),
    # The terminal of a machine with a screen; without one it would only cost time.
    "etc/systemd/system/getty@tty1.service.d/screen.conf": (
        "[Unit]\nConditionPathExistsGlob=/sys/bus/pci/devices/*/boot_vga\n"
    ),
    # Agents report that the guest is ready, so they come after what people expect of a ready one: name, users, keys.
    "etc/systemd/system/weft-agent.service": (
        "[Unit]\nDescription=weft's guest agent\nBindsTo=dev-virtio\\x2dports-weft.agent.0.device\n"
        "After=dev-virtio\\x2dports-weft.agent.0.device cloud-init.service systemd-networkd.service\n\n"
        "[Service]\nExecStart=/usr/local/sbin/weft-agent\nRestart=always\nRestartSec=1\nOOMScoreAdjust=-1000\n"
        "WorkingDirectory=/root\nEnvironment=HOME=/root USER=root\nKillMode=mixed\n"
    ),
    "etc/udev/rules.d/60-weft-agent.rules": (
        'SUBSYSTEM=="virtio-ports", ATTR{name}=="weft.agent.0", '
        'TAG+="systemd", ENV{SYSTEMD_WANTS}="weft-agent.service"\n'
    ),
    # What is plugged in while it runs is used.
    "etc/udev/rules.d/61-weft-growth.rules": (
        'SUBSYSTEM=="cpu", ACTION=="add", TEST=="online", ATTR{online}=="0", ATTR{online}="1"\n'
        'SUBSYSTEM=="memory", ACTION=="add", TEST=="state", ATTR{state}=="offline", ATTR{state}="online"\n'
    ),
    "etc/systemd/system/qemu-guest-agent.service.d/ready.conf": "[Unit]\nAfter=cloud-init.service systemd-networkd.service\n",
    # Debian's own waits for the network before the first user is made; only what comes after it needs that. Stages that
    # follow each other anyway share a process that has imported what all of them need: see stages.py.
    "etc/systemd/system/cloud-init.service": (
        "[Unit]\nDescription=Initial cloud-init job\nDefaultDependencies=no\n"
        "Wants=cloud-init-local.service\nAfter=cloud-init-local.service\n"
        "Before=network-online.target sysinit.target shutdown.target systemd-user-sessions.service\n"
        "Conflicts=shutdown.target\n\n"
        "[Service]\nType=oneshot\nExecStart=/bin/true\nRemainAfterExit=yes\n"
    ),
    STAGES: Path(__file__).with_name("stages.py").read_text(),
    RENEWED: Path(__file__).with_name("renewed").read_text(),
    WARM: Path(__file__).with_name("warm").read_text(),
    "etc/systemd/system/cloud-init-local.service.d/stages.conf": f"{_RUN_STAGES} 'init --local' init\n",
    "etc/systemd/system/cloud-config.service.d/stages.conf": "[Service]\nExecStart=\nExecStart=/bin/true\n",
    "etc/systemd/system/cloud-final.service.d/stages.conf": (
        f"{_RUN_STAGES} 'modules --mode=config' 'modules --mode=final'\n"
    ),
    "etc/systemd/system/systemd-networkd-wait-online.service.d/patience.conf": (
        "[Unit]\nAfter=systemd-resolved.service\n\n"
        "[Service]\nExecStart=\nExecStart=-/lib/systemd/systemd-networkd-wait-online --any --timeout=10\n"
        # The agent lets the first commands wait for this file, so that they find a network, and names in it.
        "ExecStartPost=/bin/touch /run/network-tried\n"
    ),
    "etc/systemd/system/ssh-host-key.service": (
        "[Unit]\nDescription=SSH host key, at the first boot\nConditionPathExists=!/etc/ssh/ssh_host_ed25519_key\n"
        # Where cloud-init runs, it makes the key: never two at once.
        "DefaultDependencies=no\nAfter=systemd-remount-fs.service systemd-tmpfiles-setup.service cloud-init.service\n\n"
        "[Service]\nType=oneshot\nExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key\n"
    ),
    "etc/systemd/system/ssh.service.d/key.conf": "[Unit]\nWants=ssh-host-key.service\nAfter=ssh-host-key.service\n",
    "etc/cloud/cloud.cfg.d/90-weft.cfg": (
        "# The one source of data is the seed disk; DHCP and the disk's growth are systemd's.\n"
        "datasource_list: [NoCloud, None]\n"
        "network: {config: disabled}\n"
        # One key, quickly made; cloud-init calls a list of none invalid.
        "ssh_deletekeys: false\nssh_genkeytypes: [ed25519]\nssh_quiet_keygen: true\n"
        "disable_root: true\n"
        "manage_etc_hosts: false\npreserve_hostname: false\n"
        "growpart: {mode: 'off'}\nresize_rootfs: false\n"
        # Each module costs an emulated CPU some tenths of a second, also when it has nothing to do.
        "cloud_init_modules: [bootcmd, write-files, set_hostname, ca-certs, users-groups, ssh]\n"
        "cloud_config_modules: [set-passwords, apt-configure, ntp, timezone, runcmd]\n"
        "cloud_final_modules: [package-update-upgrade-install, write-files-deferred, scripts-vendor,\n"
        "  scripts-per-once, scripts-per-boot, scripts-per-instance, scripts-user, phone-home, final-message,\n"
        "  power-state-change]\n"
        "no_ssh_fingerprints: true\nssh: {emit_keys_to_console: false}\n"
    ),
}


def lay_out(root: Path) -> None:
    """Turn the fresh tree ``root`` into the image's."""
    for name in REMOVED:
        (root / name).unlink(missing_ok=True)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    units = root / "etc/systemd/system"
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    for target, wanted in WANTED.items():
        folder = units / f"{target}.wants"
        folder.mkdir(parents=True, exist_ok=True)
        for unit in wanted:
            (folder / unit).unlink(missing_ok=True)
            (folder / unit).symlink_to(f"/lib/systemd/system/{unit}")
    for place, text in FILES.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(text)
    _postpone(root, "systemd-resolved.service")
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    for left in ("var/cache/apt/archives", "var/lib/apt/lists", "var/log/journal", "var/cache/debconf"):
        shutil.rmtree(root / left, ignore_errors=True)
    for empty in ("var/cache/apt/archives/partial", "var/lib/apt/lists/partial", "var/cache/debconf"):
        (root / empty).mkdir(parents=True, exist_ok=True)


def _postpone(root: Path, unit: str) -> None:
    """Nothing waits for this one before it is needed; by Debian's the whole system and its agents would."""
    text = (root / "lib/systemd/system" / unit).read_text()
    text = text.replace("Before=sysinit.target network.target ", "Before=multi-user.target ")
    (root / "etc/systemd/system" / unit).write_text(
        text.replace("WantedBy=sysinit.target", "WantedBy=multi-user.target")
    )
