/* PID 1 of the tiny image: from the initial RAM file system to a running guest without starting one shell.
 *
 * Loads the virtio modules that the root disk and the agent's port need, mounts the root (found by its label, so the
 * order of disks doesn't matter), starts the agent first because readiness waits for it, then a shell on the serial
 * line and /etc/rc in the background. Afterwards it reaps orphans, starts agent and shell again when they end, and
 * takes busybox's signals for the ends: SIGUSR1 and SIGUSR2 power off, SIGTERM reboots.
 *
 * It never leaves: where a step fails it says so on the console and goes on, because a kernel without PID 1 panics.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROOT_LABEL "tiny-root"
#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t)

static const char *const core_modules[] = {"virtio_ring", "virtio", NULL};
static const char *const pci_modules[] = {"virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", NULL};
static const char *const mmio_modules[] = {"virtio_mmio", NULL};
static const char *const disk_modules[] = {"virtio_blk", "virtio_console", NULL};
static const char *const late_modules[] = {"failover", "net_failover", "virtio_net", "virtio-rng", "virtio_balloon",
                                           "virtio_mem", NULL};

static char root_device[64];

static void say(const char *what, const char *name) {
    dprintf(2, "init: %s %s: %s\n", what, name, strerror(errno));
}

static void load_modules(const char *folder, const char *const *names) {
    for (; *names; names++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s.ko", folder, *names);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)) say("module", *names);
        if (fd >= 0) close(fd);
    }
}

static void mount_or_say(const char *source, const char *target, const char *type, unsigned long flags,
                         const char *options) {
    mkdir(target, 0755);
    if (mount(source, target, type, flags, options) != 0) say("mount", target);
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

static int find_root(void) {
    for (int attempt = 0; attempt < 1000; attempt++, usleep(10000)) {
        DIR *blocks = opendir("/sys/block");
        for (struct dirent *entry; blocks && (entry = readdir(blocks));) {
            if (strncmp(entry->d_name, "vd", 2) != 0) continue;
            snprintf(root_device, sizeof root_device, "/dev/%.32s", entry->d_name);
            if (is_root(root_device)) {
                closedir(blocks);
                return 1;
            }
        }
        if (blocks) closedir(blocks);
    }
    return 0;
}

static void enter_root(void) {
    mkdir("/root", 0755);
    while (!find_root() || mount(root_device, "/root", "ext4", MS_NOATIME, "") != 0) {
        say("root disk", ROOT_LABEL);
        sleep(5);
    }
    const char *const moved[] = {"/dev", "/proc", "/sys"};
    for (int i = 0; i < 3; i++) {
        char target[32];
        snprintf(target, sizeof target, "/root%s", moved[i]);
        if (mount(moved[i], target, NULL, MS_MOVE, NULL) != 0) say("move", target);
    }
    const char *const *const lists[] = {core_modules, pci_modules, mmio_modules, disk_modules};
    for (int i = 0; i < 4; i++)
        for (const char *const *name = lists[i]; *name; name++) { /* the RAM file system stays in memory otherwise */
            char path[64];
            snprintf(path, sizeof path, "/modules/%s.ko", *name);
            unlink(path);
        }
    if (chdir("/root") != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0)
        say("enter", "/root");
}

static void set_hostname(void) {
    char line[4096] = "", name[65] = "tiny";
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (read(fd, line, sizeof line - 1) < 0) line[0] = 0;
        close(fd);
    }
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n"))
        if (strncmp(word, "weft.hostname=", 14) == 0) snprintf(name, sizeof name, "%.64s", word + 14);
    if (sethostname(name, strlen(name)) != 0) say("hostname", name);
}

static struct service {
    const char *program, *name, *line, *oom_score_adj;
    pid_t pid;
    long started; /* milliseconds */
} services[] = {
    {.program = "/sbin/weft-agent", .name = "weft-agent", .line = "/dev/null", .oom_score_adj = "-1000"},
    {.program = "/bin/sh", .name = "-sh", .line = "/dev/ttyS0", .oom_score_adj = "0"},
};

static long milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void become(const struct service *service) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    int fd = open(service->line, O_RDWR);
    if (fd < 0) _exit(1);
    ioctl(fd, TIOCSCTTY, 0);
    for (int i = 0; i < 3; i++) dup2(fd, i);
    if (fd > 2) close(fd);
    fd = open("/proc/self/oom_score_adj", O_WRONLY);
    if (fd >= 0) {
        if (write(fd, service->oom_score_adj, strlen(service->oom_score_adj)) < 0) say("oom_score_adj", service->name);
        close(fd);
    }
    if (chdir("/root") != 0) say("folder", "/root");
    execl(service->program, service->name, NULL);
    say("program", service->program);
    _exit(127);
}

static void start(struct service *service) {
    service->started = milliseconds();
    service->pid = fork();
    if (service->pid == 0) become(service);
    if (service->pid < 0) service->pid = 0; /* no memory just now: tried again soon */
}

static pid_t start_background(void) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    load_modules("/lib/modules", late_modules);
    uint64_t bytes = 0, blocks;
    int disk = open(root_device, O_RDONLY | O_CLOEXEC), root = open("/", O_RDONLY | O_CLOEXEC);
    if (disk >= 0 && root >= 0 && ioctl(disk, BLKGETSIZE64, &bytes) == 0) {
        blocks = bytes / 4096; /* the image's file system has blocks of 4 KiB */
        if (ioctl(root, EXT4_IOC_RESIZE_FS, &blocks) != 0) say("grow", root_device);
    }
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    execl("/bin/sh", "sh", "/etc/rc", NULL);
    _exit(127);
}

static void end_machine(int how) {
    kill(-1, SIGTERM);
    kill(-1, SIGHUP); /* an interactive shell ignores SIGTERM */
    kill(-1, SIGCONT);
    for (int tenths = 0; tenths < 20; tenths++) {
        while (waitpid(-1, NULL, WNOHANG) > 0) {
        }
        if (waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD) break;
        usleep(tenths < 5 ? 20000 : 100000);
    }
    kill(-1, SIGKILL);
    sync();
    mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    reboot(how);
    for (;;) pause();
}

int main(void) {
    mount_or_say("dev", "/dev", "devtmpfs", MS_NOSUID, NULL);
    mount_or_say("proc", "/proc", "proc", 0, NULL);
    mount_or_say("sys", "/sys", "sysfs", 0, NULL);
    int console = open("/dev/console", O_RDWR);
    for (int i = 0; console >= 0 && i < 3; i++) dup2(console, i);
    if (console > 2) close(console);
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/root", 1);
    setenv("USER", "root", 1);
    setenv("TERM", "linux", 1);

    load_modules("/modules", core_modules);
    load_modules("/modules", folder_has_entries("/sys/bus/pci/devices") ? pci_modules : mmio_modules);
    load_modules("/modules", disk_modules);
    enter_root();
    set_hostname();
    mount_or_say("pts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666");

    sigset_t handled;
    sigemptyset(&handled);
    sigaddset(&handled, SIGCHLD);
    sigaddset(&handled, SIGUSR1);
    sigaddset(&handled, SIGUSR2);
    sigaddset(&handled, SIGTERM);
    sigprocmask(SIG_BLOCK, &handled, NULL);

    start(&services[0]);
    mount_or_say("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, NULL);
    mount_or_say("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
    start_background();
    start(&services[1]);

    for (;;) {
        struct timespec rest = {.tv_nsec = 100 * 1000 * 1000};
        int signal = sigtimedwait(&handled, NULL, services[0].pid && services[1].pid ? NULL : &rest);
        if (signal == SIGTERM) end_machine(RB_AUTOBOOT);
        if (signal == SIGUSR1 || signal == SIGUSR2) end_machine(RB_POWER_OFF);
        for (pid_t ended; (ended = waitpid(-1, NULL, WNOHANG)) > 0;)
            for (int i = 0; i < 2; i++)
                if (ended == services[i].pid) services[i].pid = 0;
        for (int i = 0; i < 2; i++) /* at most one start a second: no busy loop if it can't live */
            if (!services[i].pid && milliseconds() > services[i].started + 1000) start(&services[i]);
    }
}
