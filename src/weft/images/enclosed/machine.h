/* What both machines made of a container's image are put together from (init.c, vm.c): files and mounts, modules, disks, NICs. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t)

static const char *const modules[] = {"virtio_ring", "virtio", "virtio_blk", "virtio_console", NULL};
static const char *const pci_modules[] = {"virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", NULL};
static const char *const mmio_modules[] = {"virtio_mmio", NULL};
static const char *const more_modules[] = {"failover", "net_failover", "virtio_net", NULL};
static const char *const late_modules[] = {"virtio-rng", "virtio_balloon", NULL};

static void say(const char *what, const char *name) { dprintf(2, "init: %s %s: %s\n", what, name, strerror(errno)); }

static long milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static ssize_t read_file(const char *path, char *data, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, data, size - 1);
    if (fd >= 0) close(fd);
    data[n > 0 ? n : 0] = 0;
    return n;
}

static int write_file(const char *path, const char *data, size_t length) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), fine = fd >= 0;
    for (size_t at = 0; fine && at < length;) {
        ssize_t n = write(fd, data + at, length - at);
        if (n <= 0) fine = 0;
        else at += n;
    }
    if (fd >= 0) close(fd);
    return fine;
}

static void make_folders(const char *path) {
    char part[4096];
    snprintf(part, sizeof part, "%s", path);
    for (char *at = part + 1; *at; at++)
        if (*at == '/') *at = 0, mkdir(part, 0755), *at = '/';
    mkdir(part, 0755);
}

static int mount_on(const char *source, const char *target, const char *type, unsigned long flags, const char *options) {
    make_folders(target);
    int failed = mount(source, target, type, flags, options) != 0;
    if (failed) say("mount", target);
    return !failed;
}

static void load_modules(const char *const *names) {
    for (; *names; names++) {
        char path[128];
        snprintf(path, sizeof path, "/modules/%s.ko", *names);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)) say("module", *names);
        if (fd >= 0) close(fd);
        unlink(path); /* it stays in memory otherwise */
    }
}

static void load_first_modules(void) {
    struct stat there;
    load_modules(modules);
    load_modules(stat("/sys/bus/pci/devices/0000:00:00.0", &there) == 0 ? pci_modules : mmio_modules);
}

static int find_disk(const char *serial, char *device, size_t size) {
    for (int attempt = 0; attempt < 1000; attempt++, usleep(10000)) {
        DIR *blocks = opendir("/sys/block");
        for (struct dirent *entry; blocks && (entry = readdir(blocks));) {
            char path[300], found[32];
            if (strncmp(entry->d_name, "vd", 2) != 0) continue;
            snprintf(path, sizeof path, "/sys/block/%s/serial", entry->d_name);
            if (read_file(path, found, sizeof found) < 0) continue;
            found[strcspn(found, "\n")] = 0;
            if (strcmp(found, serial) != 0) continue;
            snprintf(device, size, "/dev/%.32s", entry->d_name);
            closedir(blocks);
            return 1;
        }
        if (blocks) closedir(blocks);
    }
    return 0;
}

static void set_address(int fd, struct ifreq *request, unsigned long what, in_addr_t address) {
    struct sockaddr_in *place = (struct sockaddr_in *)&request->ifr_addr;
    *place = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = address};
    if (ioctl(fd, what, request) != 0) say("address of", request->ifr_name);
}

static void bring_up(int fd, const char *name) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    ioctl(fd, SIOCGIFFLAGS, &request);
    request.ifr_flags |= IFF_UP;
    if (ioctl(fd, SIOCSIFFLAGS, &request) != 0) say("link", name);
}

static int find_link(const char *mac, char *name, size_t size) {
    int found = 0;
    DIR *links = opendir("/sys/class/net");
    for (struct dirent *entry; links && !found && (entry = readdir(links));) {
        char path[300], address[32];
        snprintf(path, sizeof path, "/sys/class/net/%s/address", entry->d_name);
        found = *entry->d_name != '.' && read_file(path, address, sizeof address) > 0 && !strncmp(address, mac, 17);
        if (found) snprintf(name, size, "%.15s", entry->d_name);
    }
    if (links) closedir(links);
    return found;
}

/* MAC ADDRESS PREFIX GATEWAY|- MTU */
static void set_up_nic(int fd, const char *nic) {
    char mac[20], address[20], gateway[20], name[16];
    int prefix, mtu;
    if (sscanf(nic, "%17s %15s %d %15s %d", mac, address, &prefix, gateway, &mtu) != 5) return say("nic", nic);
    if (!find_link(mac, name, sizeof name)) return say("nic", mac);
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    request.ifr_mtu = mtu;
    if (ioctl(fd, SIOCSIFMTU, &request) != 0) say("mtu of", name);
    set_address(fd, &request, SIOCSIFADDR, inet_addr(address));
    set_address(fd, &request, SIOCSIFNETMASK, htonl(prefix ? ~0u << (32 - prefix) : 0));
    bring_up(fd, name);
    if (*gateway == '-') return;
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    ((struct sockaddr_in *)&route.rt_dst)->sin_family = AF_INET;
    ((struct sockaddr_in *)&route.rt_genmask)->sin_family = AF_INET;
    *(struct sockaddr_in *)&route.rt_gateway = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(gateway)};
    if (ioctl(fd, SIOCADDRT, &route) != 0) say("route via", gateway);
}

static void allow_signals(void) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
}

static pid_t grower; /* who is growing the root's file system; 0: nobody (any more) */

/* The root's file system to its disk's size, and the modules that can wait: beside what goes on. */
static void grow_root(const char *device, const char *place) {
    int disk = open(device, O_RDONLY | O_CLOEXEC), root = open(place, O_RDONLY | O_CLOEXEC);
    if ((grower = fork()) == 0) {
        uint64_t bytes = 0, blocks;
        if (disk >= 0 && root >= 0 && ioctl(disk, BLKGETSIZE64, &bytes) == 0) {
            blocks = bytes / 4096;
            if (ioctl(root, EXT4_IOC_RESIZE_FS, &blocks) != 0) say("grow", device);
        }
        if (fork() == 0) load_modules(late_modules);
        _exit(0);
    }
    close(disk), close(root);
}

/* A machine that is off amid the growing has a file system that its next run may fail on, in the kernel. */
static void await_grown(void) {
    while (grower > 0 && waitpid(grower, NULL, 0) < 0 && errno == EINTR) {
    }
    grower = 0;
}
