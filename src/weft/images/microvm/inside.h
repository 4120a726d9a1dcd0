/* What the container's first process does before its program: it prepares the root, and becomes its user. */
#pragma once
#include "exchange_disk.h"

static int bind_fd(int fd, const char *target, unsigned long flags) {
    char source[40];
    snprintf(source, sizeof source, "/proc/self/fd/%d", fd);
    int fine = mount(source, target, NULL, MS_BIND, NULL) == 0 &&
               (!flags || mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | flags, NULL) == 0);
    if (!fine) log_failure("bind", target);
    close(fd);
    return fine;
}

static void make_devices(int terminals) {
    static const struct { const char *path; int major, minor; } nodes[] = {
        {"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/full", 1, 7}, {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0},
    };
    static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
        {"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"}, {"pts/ptmx", "/dev/ptmx"}};
    mount_on("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k");
    umask(0);
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        if (mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)) != 0) log_failure("device", nodes[i].path);
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlink(links[i][0], links[i][1]) != 0) log_failure("link", links[i][1]);
    umask(022);
    mkdir("/dev/pts", 0755);
    bind_fd(terminals, "/dev/pts", MS_NOSUID | MS_NOEXEC);
    mount_on("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=65536k");
    mount_on("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
}

/* BYTES|0 MODE ro|rw PATH, or SERIAL ro|rw PATH with its device open. Without one of them the container doesn't start. */
static void mount_asked(const char *tmpfs, const char *volume, int device) {
    unsigned long bytes, read_only;
    char word[32], access[4], options[64];
    int at = 0, fine;
    if (tmpfs && sscanf(tmpfs, "%lu %7s %3s %n", &bytes, word, access, &at) == 3 && at) {
        read_only = access[1] == 'o' ? MS_RDONLY : 0;
        snprintf(options, sizeof options, bytes ? "mode=%s,size=%lu" : "mode=%s", word, bytes);
        fine = mount_on("tmpfs", tmpfs + at, "tmpfs", MS_NOSUID | MS_NODEV | read_only, options);
    } else {
        fine = volume && sscanf(volume, "%31s %3s %n", word, access, &at) == 2 && at;
        read_only = access[1] == 'o' ? MS_RDONLY : 0;
        struct stat disk;
        snprintf(options, sizeof options, "/dev/%.31s", word);
        fine = fine && fstat(device, &disk) == 0 && mknod(options, S_IFBLK, disk.st_rdev) == 0 &&
               mount_on(options, volume + at, "ext4", MS_NOSUID | MS_NODEV | read_only, "errors=remount-ro") && unlink(options) == 0;
    }
    if (!fine) dprintf(2, "weft: %s can't be mounted\n", tmpfs ? tmpfs : volume), _exit(126);
    if (device >= 0) close(device);
    if (!tmpfs && !read_only) {
        char inside[4200];
        snprintf(inside, sizeof inside, "%s/lost+found", volume + at);
        rmdir(inside); /* databases want their folder empty */
    }
}

static void fill_root(void) {
    const unsigned long tight = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    static const char *const shown[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
    int terminals = open("/dev/pts", O_PATH | O_CLOEXEC), files[MOST], volumes[MOST];
    for (size_t i = 0; i < config.files; i++) {
        char path[64];
        snprintf(path, sizeof path, KEPT "/file%zu", i);
        files[i] = open(path, O_PATH | O_CLOEXEC);
    }
    for (size_t i = 0; i < config.mounts; i++) {
        char serial[32], device[64];
        volumes[i] = -1;
        if (!config.volume[i]) continue;
        snprintf(serial, sizeof serial, "%.*s", (int)strcspn(config.volume[i], " "), config.volume[i]);
        if (find_disk(serial, device, sizeof device)) volumes[i] = open(device, O_PATH | O_CLOEXEC);
    }
    if (chdir("/c") != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0) {
        log_failure("enter", "/c");
        _exit(126);
    }
    /* From here on no path leads out of the container's root, whatever links its image has. */
    mount_on("proc", "/proc", "proc", tight, "");
    make_devices(terminals);
    mount_on("sysfs", "/sys", "sysfs", tight | MS_RDONLY, "");
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++)
        if (mount(shown[i], shown[i], NULL, MS_BIND, NULL) == 0) mount(NULL, shown[i], NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | tight, NULL);
    for (size_t i = 0; i < config.files; i++) { /* PATH CONTENT */
        char path[256];
        snprintf(path, sizeof path, "%.*s", (int)strcspn(config.file[i], " "), config.file[i]);
        char *name = strrchr(path, '/');
        *name = 0, make_folders(path), *name = '/';
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (fd >= 0) close(fd);
        bind_fd(files[i], path, MS_RDONLY | tight);
    }
    for (size_t i = 0; i < config.mounts; i++) mount_asked(config.tmpfs[i], config.volume[i], volumes[i]);
    make_folders(config.cwd);
    if (config.read_only && mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NODEV, NULL) != 0) {
        log_failure("read-only root", "/");
        _exit(126); /* it must not start without it */
    }
}

/* The user, and what root may: nothing afterwards gives more. */
static void become_user(void) {
    struct rlimit files = {1024, 1 << 20};
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    uint32_t low = config.rights, high = config.rights >> 32;
    struct __user_cap_data_struct held[2] = {{low, low, 0}, {high, high, 0}};
    setrlimit(RLIMIT_NOFILE, &files);
    for (int right = 0; right < 64; right++)
        if (!(config.rights >> right & 1)) prctl(PR_CAPBSET_DROP, right, 0, 0, 0);
    int fine = setgroups(config.group_count, config.groups) == 0 && setresgid(config.gid, config.gid, config.gid) == 0;
    fine = fine && setresuid(config.uid, config.uid, config.uid) == 0;
    if (fine && !config.uid) fine = syscall(SYS_capset, &head, held) == 0;
    if (!fine || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        log_failure("user", "");
        _exit(126);
    }
}
