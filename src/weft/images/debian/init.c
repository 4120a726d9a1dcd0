/* The initial RAM file system of the debian-12 image: one program that loads virtio's modules, finds the root by its
 * label, and becomes systemd. A general one (initramfs-tools) costs an emulated CPU several seconds.
 *
 * The modules of NICs, ports and balloon are loaded here too: udev would start a modprobe for each.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ROOT_LABEL "debian-root"

static const char *const core_modules[] = {"virtio_ring", "virtio", NULL};
static const char *const pci_modules[] = {"virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", NULL};
static const char *const mmio_modules[] = {"virtio_mmio", NULL};
static const char *const device_modules[] = {"virtio_blk", "virtio_console", "failover", "net_failover", "virtio_net",
                                             "virtio-rng", "virtio_balloon", "cdrom", "isofs", NULL};

static void say(const char *what, const char *name) {
    dprintf(2, "init: %s %s: %s\n", what, name, strerror(errno));
}

static void load_modules(const char *const *names) {
    for (; *names; names++) {
        char path[64];
        snprintf(path, sizeof path, "/modules/%s.ko", *names);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)) say("module", *names);
        if (fd >= 0) close(fd);
        unlink(path); /* what lies in the RAM file system stays in memory otherwise */
    }
}

static int folder_has_entries(const char *path) {
    DIR *folder = opendir(path);
    if (!folder) return 0;
    int found = 0;
    for (struct dirent *entry; !found && (entry = readdir(folder));) found = entry->d_name[0] != '.';
    closedir(folder);
    return found;
}

/* An ext4 superblock starts at byte 1024; its magic lies at 56, its label (16 bytes) at 120. */
static int is_root(const char *device) {
    unsigned char superblock[136];
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    int fits = pread(fd, superblock, sizeof superblock, 1024) == sizeof superblock && superblock[56] == 0x53 &&
               superblock[57] == 0xef && strncmp((char *)superblock + 120, ROOT_LABEL, 16) == 0;
    close(fd);
    return fits;
}

static int mount_root(void) {
    DIR *blocks = opendir("/sys/class/block");
    int mounted = 0;
    for (struct dirent *entry; !mounted && blocks && (entry = readdir(blocks));) {
        char device[64];
        snprintf(device, sizeof device, "/dev/%.32s", entry->d_name);
        mounted = entry->d_name[0] != '.' && is_root(device) && mount(device, "/root", "ext4", MS_NOATIME, "") == 0;
    }
    if (blocks) closedir(blocks);
    return mounted;
}

static void set_hostname(void) {
    char line[4096] = "";
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    if (read(fd, line, sizeof line - 1) < 0) line[0] = 0;
    close(fd);
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n"))
        if (strncmp(word, "weft.hostname=", 14) == 0 && sethostname(word + 14, strlen(word + 14)) != 0)
            say("hostname", word + 14);
}

int main(void) {
    if (mount("dev", "/dev", "devtmpfs", MS_NOSUID, "") != 0) say("mount", "/dev");
    int console = open("/dev/console", O_RDWR);
    for (int i = 0; console >= 0 && i < 3; i++) dup2(console, i);
    if (console > 2) close(console);
    if (mount("proc", "/proc", "proc", 0, "") != 0) say("mount", "/proc");
    if (mount("sys", "/sys", "sysfs", 0, "") != 0) say("mount", "/sys");

    load_modules(core_modules);
    load_modules(folder_has_entries("/sys/bus/pci/devices") ? pci_modules : mmio_modules);
    load_modules(device_modules);
    for (int waited = 1; !mount_root(); waited++, usleep(10000))
        if (waited % 500 == 0) dprintf(2, "init: no disk has a file system labelled " ROOT_LABEL "\n");
    set_hostname();

    const char *const moved[] = {"/dev", "/proc", "/sys"};
    for (int i = 0; i < 3; i++) {
        char target[32];
        snprintf(target, sizeof target, "/root%s", moved[i]);
        if (mount(moved[i], target, NULL, MS_MOVE, NULL) != 0) say("move", target);
    }
    if (chdir("/root") != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0)
        say("enter", "/root");
    execl("/sbin/init", "/sbin/init", NULL);
    say("program", "/sbin/init");
    for (;;) pause(); /* a kernel without PID 1 panics, and nobody could read why */
}
