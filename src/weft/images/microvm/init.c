/* PID 1 of the machine around one container, and what lets others in: all that runs there besides the container.
 *
 * As /init it loads the virtio modules, reads from the disk "exchange" what to run, mounts the disk "root", sets the network up,
 * and starts the container's process in namespaces for processes and mounts of its own, as the user and with the rights that
 * it is to have. Then it keeps what that prints, starts weft's guest agent (which runs `enter` for each command beside it),
 * and powers the machine off when the process has ended.
 *
 *   enter FOLDER COMMAND…   a command in the container, with the environment as it is, as the container's user
 *   kill-command NAME       ends one that was started as NAME
 *   poweroff                asks the container's process to end, by its stop signal; the machine follows
 *
 * The disk "exchange" has all that host and machine exchange, so it outlives both, and never grows beyond its size:
 *   0          a header (struct header), which only the machine writes, a sector at once
 *   4096       CONFIG bytes of records that the host writes before each run: WORD VALUE NUL; an empty one is the last
 *   4096+CONFIG  a ring for what was printed: byte P of all of them lies at P modulo its size. Lines:
 *              SECONDS.NANOSECONDS stdout|stderr F|P TEXT, P for a part of a line that goes on
 * Numbers are little endian.
 */
#include "inside.h"

enum { DRAIN_MS = 2000, READY_MS = 60000 };

/* The machine around it. */

static void set_up_network(void) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (config.nics) load_modules(more_modules);
    bring_up(fd, "lo");
    for (size_t i = 0; i < config.nics; i++) set_up_nic(fd, config.nic[i]);
    write_file("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0", 1);
    write_file("/proc/sys/net/ipv4/ping_group_range", "0 2147483647", 12);
    close(fd);
}

static void limit_processes(void) {
    char text[32];
    if (config.pids <= 0 || !mount_on("cgroup2", "/cgroup", "cgroup2", 0, "")) return;
    write_file("/cgroup/cgroup.subtree_control", "+pids", 5);
    mkdir("/cgroup/container", 0755);
    int length = snprintf(text, sizeof text, "%ld", config.pids);
    if (!write_file("/cgroup/container/pids.max", text, length)) log_failure("limit", "pids");
}

static int open_root(char *device, size_t size) {
    if (!find_disk("root", device, size)) return log_failure("disk", "root"), 0;
    if (!mount_on(device, "/c", "ext4", MS_NODEV, "noinit_itable")) return 0;
    rmdir("/c/lost+found"); /* of the file system, not of the image */
    return 1;
}

/* In the container. */

static void begin_container(int outcome, int out, int err) {
    int nothing = open("/dev/null", O_RDONLY);
    write_file("/cgroup/container/cgroup.procs", "0", 1);
    fill_root();
    setsid();
    if (fchown(out, config.uid, config.gid) != 0 || fchown(err, config.uid, config.gid) != 0) log_failure("owner", "stdio");
    dup2(nothing, 0), dup2(out, 1), dup2(err, 2);
    if (nothing > 2) close(nothing);
    allow_signals();
    config.env[config.envc] = NULL, config.argv[config.argc] = NULL;
    environ = config.env;
    become_user();
    if (chdir(config.cwd) != 0) dprintf(2, "weft: folder %s: %s\n", config.cwd, strerror(errno)), _exit(126);
    execvp(config.argv[0], config.argv);
    int why = errno;
    dprintf(2, "weft: %s: %s\n", config.argv[0], why == ENOENT ? "not found" : strerror(why));
    if (write(outcome, &why, sizeof why) < 0) _exit(126);
    _exit(why == ENOENT ? 127 : 126);
}

/* Returns its number once its program has begun, or failed to (`why` is set then). */
static pid_t start_container(int *why, int out, int err) {
    int outcome[2];
    *why = 0;
    if (pipe2(outcome, O_CLOEXEC) != 0) return -1;
    pid_t pid = syscall(SYS_clone, CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) close(outcome[0]), begin_container(outcome[1], out, err);
    close(outcome[1]), close(out), close(err);
    if (pid > 0 && read(outcome[0], why, sizeof *why) < 0) log_failure("start", "");
    close(outcome[0]);
    return pid;
}

/* A command beside it. One that is started with _ENTERED_AS=NAME in its environment can be killed by that name. */


static int is_mark(const char *name) { return name && *name && strlen(name) < 64 && !strchr(name, '/'); }

static int kill_command(const char *name) {
    char path[128], number[32];
    snprintf(path, sizeof path, KEPT "/exec/%.64s", name);
    return !is_mark(name) || (read_file(path, number, sizeof number) > 0 && kill(atoi(number), SIGKILL) != 0);
}

static int enter(int argc, char **argv) {
    char number[32], path[64], *data = calloc(1, CONFIG + 1);
    int status;
    if (argc < 3 || !data || read_file(KEPT "/config", data, CONFIG + 1) <= 0 || read_file(KEPT "/pid", number, sizeof number) <= 0) return 126;
    read_config(data, CONFIG);
    snprintf(path, sizeof path, "/proc/%d/ns/pid", atoi(number));
    int processes = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", atoi(number));
    int mounts = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%d/ns/ipc", atoi(number));
    int queues = open(path, O_RDONLY | O_CLOEXEC), marks = open(KEPT "/exec", O_PATH | O_CLOEXEC);
    const char *mark = getenv("_ENTERED_AS");
    unsetenv("_ENTERED_AS");
    for (int i = 1; i < 32; i++) signal(i, i == SIGCHLD ? SIG_DFL : SIG_IGN); /* they are for the command */
    write_file("/cgroup/container/cgroup.procs", "0", 1);
    if (setns(processes, CLONE_NEWPID) != 0 || setns(queues, CLONE_NEWIPC) != 0 || setns(mounts, CLONE_NEWNS) != 0) {
        log_failure("the container has ended", "");
        return 126;
    }
    pid_t pid = fork();
    if (pid < 0) return log_failure("no process", argv[2]), 126;
    if (pid == 0) {
        for (int i = 1; i < 32; i++) signal(i, SIG_DFL);
        allow_signals();
        const char *folder = *argv[1] ? argv[1] : config.cwd;
        become_user();
        if (chdir(folder) != 0) dprintf(2, "weft: folder %s: %s\n", folder, strerror(errno)), _exit(126);
        execvp(argv[2], argv + 2);
        dprintf(2, "weft: %s: %s\n", argv[2], errno == ENOENT ? "not found" : strerror(errno));
        _exit(errno == ENOENT ? 127 : 126);
    }
    close(0), close(1), close(2);
    if (is_mark(mark)) {
        int fd = openat(marks, mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd >= 0) dprintf(fd, "%d", pid), close(fd);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    if (is_mark(mark)) unlinkat(marks, mark, 0);
    if (!WIFSIGNALED(status)) return WEXITSTATUS(status);
    signal(WTERMSIG(status), SIG_DFL);
    kill(getpid(), WTERMSIG(status));
    return 128 + WTERMSIG(status);
}

/* The machine's life. */

static pid_t start_agent(void) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    allow_signals();
    setsid();
    int nothing = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++) dup2(nothing, i);
    write_file("/proc/self/oom_score_adj", "-1000", 5);
    char *words[] = {"weft-agent", NULL}, *none[] = {NULL};
    execve("/weft-agent", words, none);
    _exit(127);
}

static int was_out_of_memory(void) {
    static char text[16384];
    read_file("/proc/vmstat", text, sizeof text);
    char *line = strstr(text, "\noom_kill ");
    return line && atol(line + 10) > 0;
}

static void end_machine(uint32_t how, uint32_t code) {
    await_grown();
    if (!exchange.top) reboot(RB_POWER_OFF); /* there is nowhere to report it */
    exchange.top->head.state = ENDED, exchange.top->head.how = how, exchange.top->head.code = code;
    sync(); /* volumes too, which are mounted in the container's mounts alone */
    if (umount2("/c", 0) != 0) mount(NULL, "/c", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    if (exchange.fd >= 0) write_head(); /* last: a reader may end the machine then */
    reboot(RB_POWER_OFF);
    for (;;) pause();
}

static int drain(struct pollfd *stream, const char *name) {
    char data[PIECE];
    ssize_t n = read(stream->fd, data, sizeof data);
    if (n > 0) keep_printed(name, data, n);
    else if (n == 0 || (errno != EAGAIN && errno != EINTR)) close(stream->fd), stream->fd = -1;
    return n > 0;
}

/* Whether this signal reaches the first process of a namespace: the kernel drops one that it neither handles nor holds back. */
static int takes_signal(pid_t container, int number) {
    char path[32], text[4096];
    uint64_t taken = 0;
    snprintf(path, sizeof path, "/proc/%d/status", container);
    if (number == SIGKILL || read_file(path, text, sizeof text) <= 0) return 1;
    for (int i = 0; i < 2; i++) {
        char *line = strstr(text, i ? "\nSigCgt:" : "\nSigBlk:");
        if (line) taken |= strtoull(line + 8, NULL, 16);
    }
    return taken >> (number - 1) & 1;
}

static void watch(pid_t container, int out, int err, int signals, int began) {
    struct pollfd polled[3] = {{signals, POLLIN, 0}, {out, POLLIN, 0}, {err, POLLIN, 0}};
    pid_t agent = start_agent();
    long agent_began = milliseconds(), ended_at = 0, stop_by = 0;
    int status = 0;
    while (!ended_at || ((polled[1].fd >= 0 || polled[2].fd >= 0) && milliseconds() < ended_at + DRAIN_MS)) {
        if (poll(polled, 3, ended_at || stop_by ? 100 : agent ? -1 : 200) < 0 && errno != EINTR) log_failure("poll", "");
        struct signalfd_siginfo signalled;
        while (read(signals, &signalled, sizeof signalled) > 0)
            if (signalled.ssi_signo == SIGUSR2) stop_by = milliseconds() + READY_MS;
        /* One that was stopped early has until then to get ready, however slow its machine is. */
        if (stop_by && (takes_signal(container, config.stop_signal) || milliseconds() >= stop_by))
            kill(container, config.stop_signal), stop_by = 0;
        int found;
        for (pid_t pid; (pid = waitpid(-1, &found, WNOHANG)) > 0;) {
            if (pid == agent) agent = 0;
            if (pid == grower) grower = 0;
            if (pid == container) status = found, ended_at = milliseconds();
        }
        if (polled[1].revents) drain(&polled[1], "stdout");
        if (polled[2].revents) drain(&polled[2], "stderr");
        if (!agent && milliseconds() > agent_began + 1000) agent = start_agent(), agent_began = milliseconds();
    }
    uint32_t how = (WIFSIGNALED(status) ? SIGNALLED : 0) | (was_out_of_memory() ? OUT_OF_MEMORY : 0) | (began ? 0 : NO_PROGRAM);
    end_machine(how, WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

int main(int argc, char **argv) {
    const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    if (!strcmp(name, "enter")) return enter(argc, argv);
    if (!strcmp(name, "kill-command")) return argc != 2 || kill_command(argv[1]);
    if (!strcmp(name, "poweroff")) return kill(1, SIGUSR2) != 0;

    mount_kernel_folders();
    mount_on("pts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5");
    mkdir(KEPT, 0700), mkdir(KEPT "/exec", 0700), mkdir("/run", 0755), mkdir("/bin", 0755);
    write_file("/run/network-tried", "", 0); /* for the agent's commands: nothing is waited for here */

    load_virtio();
    load_modules(first_modules);
    if (!open_exchange()) end_machine(UNSTARTED, 0);
    char device[64] = "";
    int loaded = load_config();
    struct header *head = &exchange.top->head;
    if (loaded && !strncmp(head->run, config.run, sizeof head->run) && head->state) end_machine(AGAIN, 0);
    strncpy(head->run, config.run, sizeof head->run);
    head->state = BOOTING, head->how = head->code = 0;
    write_head();
    if (!loaded || !open_root(device, sizeof device)) end_machine(UNSTARTED, 0);
    if (sethostname(config.hostname, strlen(config.hostname)) != 0) log_failure("hostname", config.hostname);
    set_up_network();
    limit_processes();
    for (size_t i = 0; i < config.files; i++) {
        char path[64];
        const char *content = config.file[i] + strcspn(config.file[i], " ");
        snprintf(path, sizeof path, KEPT "/file%zu", i);
        write_file(path, content + 1, strlen(content + 1));
    }

    static const int handled_signals[] = {SIGCHLD, SIGUSR2, 0};
    sigset_t handled = hold_signals(handled_signals);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &handled, SFD_NONBLOCK | SFD_CLOEXEC), out[2], err[2], why;
    if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) end_machine(UNSTARTED, 0);
    pid_t container = start_container(&why, out[1], err[1]);
    if (container < 0) end_machine(UNSTARTED, 0);
    char number[32];
    write_file(KEPT "/pid", number, snprintf(number, sizeof number, "%d", container));
    if (!why) head->state = RUNNING, write_head();
    fcntl(out[0], F_SETFL, O_NONBLOCK), fcntl(err[0], F_SETFL, O_NONBLOCK);
    if (!why) grow_root(device, "/c");
    watch(container, out[0], err[0], signals, !why);
}
