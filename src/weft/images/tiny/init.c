/* PID 1 of the tiny image: from the initial RAM file system to a running guest without starting one shell.
 *
 * Loads the virtio modules that the root disk and the agent's port need, mounts the root (found by its label, so the
 * order of disks doesn't matter), starts the agent first because readiness waits for it, then a shell on the serial
 * line and, in the background, weft-devices, which gets the network. Afterwards it reaps orphans, starts agent and shell
 * again when they end, and takes busybox's signals for the ends: SIGUSR1 and SIGUSR2 power off, SIGTERM reboots.
 *
 * It never leaves: where a step fails it says so on the console and goes on, because a kernel without PID 1 panics.
 */
#include "../machine.h"

#define ROOT_LABEL "tiny-root"

static const char *const disk_modules[] = {"virtio_blk", "virtio_console", NULL};
static const char *const nic_modules[] = {"failover", "net_failover", "virtio_net", NULL};
static const char *const late_modules[] = {"virtio-rng", "virtio_balloon", "virtio_mem", NULL};

static char root_device[64];

static struct service {
    const char *program, *name, *line, *oom_score_adj;
    pid_t pid;
    long started; /* milliseconds */
} services[] = {
    {.program = "/sbin/weft-agent", .name = "weft-agent", .line = "/dev/null", .oom_score_adj = "-1000"},
    {.program = "/bin/sh", .name = "-sh", .line = "/dev/ttyS0", .oom_score_adj = "0"},
};

static void become(const struct service *service) {
    allow_signals();
    setsid();
    int fd = open(service->line, O_RDWR);
    if (fd < 0) _exit(1);
    ioctl(fd, TIOCSCTTY, 0);
    for (int i = 0; i < 3; i++) dup2(fd, i);
    if (fd > 2) close(fd);
    if (!write_file("/proc/self/oom_score_adj", service->oom_score_adj, strlen(service->oom_score_adj))) log_failure("oom_score_adj", service->name);
    if (chdir("/root") != 0) log_failure("folder", "/root");
    execl(service->program, service->name, NULL);
    log_failure("program", service->program);
    _exit(127);
}

static void start(struct service *service) {
    service->started = milliseconds();
    service->pid = fork();
    if (service->pid == 0) become(service);
    if (service->pid < 0) service->pid = 0; /* no memory just now: tried again soon */
}

static void load_installed(const char *const *names) {
    for (; *names; names++) load_module("/lib/modules", *names);
}

/* The network first: its answers take time in which the rest is done. */
static void start_background(void) {
    if (fork() != 0) return;
    load_installed(nic_modules);
    if (fork() != 0) {
        allow_signals();
        setsid();
        execl("/bin/weft-devices", "weft-devices", NULL);
        log_failure("program", "weft-devices");
        _exit(127);
    }
    load_installed(late_modules);
    grow(open(root_device, O_RDONLY | O_CLOEXEC), open("/", O_RDONLY | O_CLOEXEC), root_device);
    _exit(0);
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
    mount_kernel_folders();
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", "/root", 1);
    setenv("USER", "root", 1);
    setenv("TERM", "linux", 1);

    load_virtio();
    load_modules(disk_modules);
    await_labelled(ROOT_LABEL, "/root", root_device, sizeof root_device);
    enter_root("/root");
    set_hostname("tiny");
    become_oneself();
    mount_on("pts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666");

    static const int handled_signals[] = {SIGCHLD, SIGUSR1, SIGUSR2, SIGTERM, 0};
    sigset_t handled = hold_signals(handled_signals);

    start(&services[0]);
    mount_on("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, NULL);
    mount_on("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
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
