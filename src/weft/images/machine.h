/* What each PID 1 in here is put together from: files, mounts, modules, and the way from the initial RAM file system to a root. */
#pragma once
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t)

static const char *const ring_modules[] = {"virtio_ring", "virtio", NULL};
static const char *const pci_modules[] = {"virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", NULL};
static const char *const mmio_modules[] = {"virtio_mmio", NULL};

static inline void log_failure(const char *what, const char *name) { dprintf(2, "init: %s %s: %s\n", what, name, strerror(errno)); }

static inline long milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* As a string; what doesn't fit is left out. How long it is, -1 if there is no such file. */
static inline ssize_t read_file(const char *path, char *data, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, data, size - 1);
    if (fd >= 0) close(fd);
    data[n > 0 ? n : 0] = 0;
    return n;
}

static inline int write_file(const char *path, const char *data, size_t length) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), fine = fd >= 0;
    for (size_t at = 0; fine && at < length;) {
        ssize_t n = write(fd, data + at, length - at);
        if (n <= 0) fine = 0;
        else at += n;
    }
    if (fd >= 0) close(fd);
    return fine;
}

static inline void make_folders(const char *path) {
    char part[4096];
    snprintf(part, sizeof part, "%s", path);
    for (char *at = part + 1; *at; at++)
        if (*at == '/') *at = 0, mkdir(part, 0755), *at = '/';
    mkdir(part, 0755);
}

static inline int mount_on(const char *source, const char *target, const char *type, unsigned long flags, const char *options) {
    make_folders(target);
    int failed = mount(source, target, type, flags, options) != 0;
    if (failed) log_failure("mount", target);
    return !failed;
}

static inline void open_console(void) {
    int console = open("/dev/console", O_RDWR);
    for (int i = 0; console >= 0 && i < 3; i++) dup2(console, i);
    if (console > 2) close(console);
}

static inline void mount_kernel_folders(void) {
    mount_on("dev", "/dev", "devtmpfs", MS_NOSUID, NULL);
    open_console();
    mount_on("proc", "/proc", "proc", 0, NULL);
    mount_on("sys", "/sys", "sysfs", 0, NULL);
}

static inline void load_module(const char *folder, const char *name) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s.ko", folder, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)) log_failure("module", name);
    if (fd >= 0) close(fd);
}

/* Those of the initial RAM file system, once: what lies there stays in memory otherwise. */
static inline void load_modules(const char *const *names) {
    for (; *names; names++) {
        char path[128];
        load_module("/modules", *names);
        snprintf(path, sizeof path, "/modules/%s.ko", *names);
        unlink(path);
    }
}

/* virtio, on the bus that this machine has. */
static inline void load_virtio(void) {
    DIR *devices = opendir("/sys/bus/pci/devices");
    int has_pci = 0;
    for (struct dirent *entry; devices && !has_pci && (entry = readdir(devices));) has_pci = *entry->d_name != '.';
    if (devices) closedir(devices);
    load_modules(ring_modules);
    load_modules(has_pci ? pci_modules : mmio_modules);
    for (const char *const *name = has_pci ? mmio_modules : pci_modules; *name; name++) {
        char path[128];
        snprintf(path, sizeof path, "/modules/%s.ko", *name);
        unlink(path);
    }
}

static inline void allow_signals(void) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
}

/* Only waited for from here on; `last` of them is 0. */
static inline sigset_t hold_signals(const int *signals) {
    sigset_t held;
    sigemptyset(&held);
    for (; *signals; signals++) sigaddset(&held, *signals);
    sigprocmask(SIG_BLOCK, &held, NULL);
    return held;
}

/* An ext4 superblock starts at byte 1024; its magic lies at 56, its label (16 bytes) at 120. */
static inline int is_labelled(const char *device, const char *label) {
    unsigned char superblock[136];
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    int fits = pread(fd, superblock, sizeof superblock, 1024) == sizeof superblock && superblock[56] == 0x53 &&
               superblock[57] == 0xef && strncmp((char *)superblock + 120, label, 16) == 0;
    close(fd);
    return fits;
}

/* Mounts the disk, or the part of one, with that label at `place`: which one it is stands in `device` then. */
static inline int mount_labelled(const char *label, const char *place, char *device, size_t size) {
    DIR *blocks = opendir("/sys/class/block");
    int mounted = 0;
    for (struct dirent *entry; !mounted && blocks && (entry = readdir(blocks));) {
        snprintf(device, size, "/dev/%.32s", entry->d_name);
        mounted = *entry->d_name != '.' && is_labelled(device, label) && mount(device, place, "ext4", MS_NOATIME, "") == 0;
    }
    if (blocks) closedir(blocks);
    return mounted;
}

/* The same, for as long as it takes: a kernel without PID 1 panics, and nobody could read why. */
static inline void await_labelled(const char *label, const char *place, char *device, size_t size) {
    mkdir(place, 0755);
    for (int waited = 1; !mount_labelled(label, place, device, size); waited++, usleep(10000))
        if (waited % 500 == 0) dprintf(2, "init: no disk has a file system labelled %s\n", label);
}

/* Makes `place` /, with the kernel's folders in it. */
static inline void enter_root(const char *place) {
    static const char *const kept_mounts[] = {"/dev", "/proc", "/sys"};
    for (int i = 0; i < 3; i++) {
        char target[32];
        snprintf(target, sizeof target, "%s%s", place, kept_mounts[i]);
        mkdir(target, 0755);
        if (mount(kept_mounts[i], target, NULL, MS_MOVE, NULL) != 0) log_failure("move", target);
    }
    if (chdir(place) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0) log_failure("enter", place);
}

/* A file system of blocks of 4 KiB, to its disk's size; both are open. */
static inline void grow(int disk, int root, const char *device) {
    uint64_t bytes = 0, blocks;
    if (disk < 0 || root < 0 || ioctl(disk, BLKGETSIZE64, &bytes) != 0) return;
    blocks = bytes / 4096;
    if (ioctl(root, EXT4_IOC_RESIZE_FS, &blocks) != 0) log_failure("grow", device);
}

/* NAME=VALUE on the kernel's command line; "" if there is none. */
static inline void read_kernel_word(const char *name, char *value, size_t size) {
    char line[4096];
    size_t length = strlen(name);
    *value = 0;
    read_file("/proc/cmdline", line, sizeof line);
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n"))
        if (strncmp(word, name, length) == 0 && word[length] == '=') snprintf(value, size, "%s", word + length + 1);
}

/* weft.hostname on the kernel's command line, or that. */
static inline void set_hostname(const char *otherwise) {
    char name[65];
    read_kernel_word("weft.hostname", name, sizeof name);
    if (!*name) snprintf(name, sizeof name, "%s", otherwise);
    if (*name && sethostname(name, strlen(name)) != 0) log_failure("hostname", name);
}

/* systemd's, and D-Bus's where that has a file of its own. */
static inline int write_machine_id(const char *id) {
    char line[40];
    struct stat other;
    snprintf(line, sizeof line, "%.32s\n", id);
    int fine = write_file("/etc/machine-id", line, strlen(line));
    if (lstat("/var/lib/dbus/machine-id", &other) == 0 && S_ISREG(other.st_mode))
        fine = write_file("/var/lib/dbus/machine-id", line, strlen(line)) && fine;
    return fine;
}

/* A root that was copied, at its first start as another machine, which weft.identity on the kernel's command line names: what must not be
 * anybody's twin goes before anything of it starts; the system makes it anew. */
static inline void become_oneself(void) {
    char id[33], known[33], name[65], line[66];
    read_kernel_word("weft.identity", id, sizeof id);
    read_file("/etc/machine-id", known, sizeof known);
    if (!*id || strcmp(id, known) == 0) return;
    DIR *keys = opendir("/etc/ssh");
    for (struct dirent *entry; keys && (entry = readdir(keys));) {
        char path[300];
        snprintf(path, sizeof path, "/etc/ssh/%s", entry->d_name);
        if (strncmp(entry->d_name, "ssh_host_", 9) == 0 && unlink(path) != 0) log_failure("remove", path);
    }
    if (keys) closedir(keys);
    unlink("/var/lib/systemd/random-seed");
    read_kernel_word("weft.hostname", name, sizeof name);
    snprintf(line, sizeof line, "%s\n", name);
    if (*name && !write_file("/etc/hostname", line, strlen(line))) log_failure("hostname", name);
    if (!write_machine_id(id)) log_failure("machine-id", id); /* last: it says that the rest is done */
    sync();
}
