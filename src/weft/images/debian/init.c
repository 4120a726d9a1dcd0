/* The initial RAM file system of the debian-12 image: one program that loads virtio's modules, finds the root by its
 * label, and becomes systemd. A general one (initramfs-tools) costs an emulated CPU several seconds.
 *
 * The modules of NICs, ports and balloon are loaded here too: udev would start a modprobe for each.
 */
#include "../machine.h"

#define ROOT_LABEL "debian-root"

static const char *const device_modules[] = {"virtio_blk", "virtio_console", "failover", "net_failover", "virtio_net",
                                             "virtio-rng", "virtio_balloon", "cdrom", "isofs", NULL};

int main(void) {
    char device[64];
    mount_kernel_folders();
    load_virtio();
    load_modules(device_modules);
    await_labelled(ROOT_LABEL, "/root", device, sizeof device);
    set_hostname("");
    enter_root("/root");
    become_oneself();
    execl("/sbin/init", "/sbin/init", NULL);
    log_failure("program", "/sbin/init");
    for (;;) pause(); /* a kernel without PID 1 panics, and nobody could read why */
}
