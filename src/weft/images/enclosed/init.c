/* PID 1 of the machine around one container, and what lets others in: all that runs there besides the container.
 *
 * As /init it loads the virtio modules, reads from the disk "box" what to run, mounts the disk "root", sets the network up,
 * and starts the container's process in namespaces for processes and mounts of its own, as the user and with the rights that
 * it is to have. Then it keeps what that prints, starts weft's guest agent (which runs `enter` for each command beside it),
 * and powers the machine off when the process has ended.
 *
 *   enter FOLDER COMMAND…   a command in the container, with the environment as it is, as the container's user
 *   kill-command NAME       ends one that was started as NAME
 *   poweroff                asks the container's process to end, by its stop signal; the machine follows
 *
 * The disk "box" is all that host and machine tell each other, so it outlives both, and takes no more room than it has:
 *   0          a header (struct header), which only the machine writes, a sector at once
 *   4096       CONFIG bytes of records that the host writes before each run: WORD VALUE NUL; an empty one is the last
 *   4096+CONFIG  a ring for what was printed: byte P of all of them lies at P modulo its size. Lines:
 *              SECONDS.NANOSECONDS stdout|stderr F|P TEXT, P for a part of a line that goes on
 * Numbers are little endian.
 */
#include "machine.h"

enum { SECTOR = 512, HEAD = 4096, CONFIG = 1048576, PIECE = 8192, BATCH = 65536, MOST = 64, DRAIN_MS = 2000, SETTLE_MS = 1000 };
enum { BOOTING = 1, RUNNING = 2, ENDED = 3 };              /* states */
enum { SIGNALLED = 1, OUT_OF_MEMORY = 2, UNSTARTED = 4, AGAIN = 8 }; /* how it ended; AGAIN: the machine booted twice */
#define KEPT "/box" /* what commands that come later need, outside of the container's root */

struct header {
    char magic[8], run[32];
    uint32_t state, how, code, unused;
    uint64_t first, end; /* of the ring: what there still is */
};

static struct {
    const char *run, *cwd, *hostname, *nic[MOST], *file[MOST], *tmpfs[MOST], *volume[MOST];
    char *argv[4096], *env[4096];
    gid_t groups[MOST];
    size_t argc, envc, group_count, nics, files, mounts;
    uid_t uid;
    gid_t gid;
    int stop_signal, read_only;
    long pids;
    uint64_t rights;
} config;

static int bind_fd(int fd, const char *target, unsigned long flags) {
    char source[40];
    snprintf(source, sizeof source, "/proc/self/fd/%d", fd);
    int fine = mount(source, target, NULL, MS_BIND, NULL) == 0 &&
               (!flags || mount(NULL, target, NULL, MS_REMOUNT | MS_BIND | flags, NULL) == 0);
    if (!fine) say("bind", target);
    close(fd);
    return fine;
}

/* The box. */

static struct {
    int fd;
    uint64_t size;                       /* of the ring */
    union { struct header head; unsigned char sector[SECTOR]; } *top;
    unsigned char *batch, last[SECTOR]; /* the sector that the ring's end lies in */
} box = {.fd = -1};

static int open_box(void) {
    char device[64];
    uint64_t bytes = 0;
    if (!find_disk("box", device, sizeof device)) return say("disk", "box"), 0;
    box.fd = open(device, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (box.fd < 0 || ioctl(box.fd, BLKGETSIZE64, &bytes) != 0 || bytes < HEAD + CONFIG + 65536) return say("box", device), 0;
    box.size = (bytes - HEAD - CONFIG) / SECTOR * SECTOR;
    if (posix_memalign((void **)&box.top, 4096, SECTOR) || posix_memalign((void **)&box.batch, 4096, BATCH + SECTOR)) return 0;
    if (pread(box.fd, box.top, SECTOR, 0) != SECTOR) return say("read", device), 0;
    struct header *head = &box.top->head;
    if (memcmp(head->magic, "weftbox1", 8) != 0 || head->end - head->first > box.size)
        memset(box.top, 0, SECTOR), memcpy(head->magic, "weftbox1", 8);
    uint64_t at = head->end % box.size / SECTOR * SECTOR;
    if (pread(box.fd, box.batch, SECTOR, HEAD + CONFIG + at) == SECTOR) memcpy(box.last, box.batch, SECTOR);
    return 1;
}

static void write_head(void) {
    if (pwrite(box.fd, box.top, SECTOR, 0) != SECTOR) say("write", "box");
}

static void append(const char *data, size_t length) {
    struct header *head = &box.top->head;
    while (length) {
        uint64_t at = head->end % box.size;
        size_t before = at % SECTOR, fits = BATCH - before, whole;
        if (fits > length) fits = length;
        if (fits > box.size - at) fits = box.size - at;
        whole = (before + fits + SECTOR - 1) / SECTOR * SECTOR;
        memset(box.batch + whole - SECTOR, 0, SECTOR);
        memcpy(box.batch, box.last, before);
        memcpy(box.batch + before, data, fits);
        if (pwrite(box.fd, box.batch, whole, HEAD + CONFIG + at - before) != (ssize_t)whole) say("write", "box");
        head->end += fits;
        if (head->end - head->first > box.size - SECTOR) head->first = head->end - (box.size - SECTOR);
        memcpy(box.last, box.batch + whole - SECTOR, SECTOR);
        data += fits, length -= fits;
    }
    write_head();
}

/* What one of the container's streams said, as lines of the ring. */
static void keep_printed(const char *stream, const char *data, size_t length) {
    static char lines[PIECE * 48]; /* a line may be one byte long */
    struct timespec now;
    size_t made = 0;
    clock_gettime(CLOCK_REALTIME, &now);
    while (length) {
        const char *newline = memchr(data, '\n', length);
        size_t part = newline ? (size_t)(newline - data) : length;
        made += sprintf(lines + made, "%lld.%09ld %s %c ", (long long)now.tv_sec, now.tv_nsec, stream, newline ? 'F' : 'P');
        memcpy(lines + made, data, part);
        made += part;
        lines[made++] = '\n';
        part += newline != NULL;
        data += part, length -= part;
    }
    append(lines, made);
}

/* What to run. */

static void take_record(char *record) {
    char *value = strchr(record, ' ');
    if (!value) return;
    *value++ = 0;
    if (!strcmp(record, "arg") && config.argc < 4095) config.argv[config.argc++] = value;
    else if (!strcmp(record, "env") && config.envc < 4095) config.env[config.envc++] = value;
    else if (!strcmp(record, "run")) config.run = value;
    else if (!strcmp(record, "cwd")) config.cwd = value;
    else if (!strcmp(record, "hostname")) config.hostname = value;
    else if (!strcmp(record, "uid")) config.uid = strtoul(value, NULL, 10);
    else if (!strcmp(record, "gid")) config.gid = strtoul(value, NULL, 10);
    else if (!strcmp(record, "group") && config.group_count < MOST) config.groups[config.group_count++] = strtoul(value, NULL, 10);
    else if (!strcmp(record, "stop")) config.stop_signal = atoi(value);
    else if (!strcmp(record, "pids")) config.pids = atol(value);
    else if (!strcmp(record, "rights")) config.rights = strtoull(value, NULL, 16);
    else if (!strcmp(record, "readonly")) config.read_only = 1;
    else if (!strcmp(record, "nic") && config.nics < MOST) config.nic[config.nics++] = value;
    else if (!strcmp(record, "file") && config.files < MOST) config.file[config.files++] = value;
    else if (!strcmp(record, "tmpfs") && config.mounts < MOST) config.tmpfs[config.mounts++] = value;
    else if (!strcmp(record, "volume") && config.mounts < MOST) config.volume[config.mounts++] = value;
}

/* Reads the records in `data`, which stays: they point into it. Returns how long they are, or 0 if they have no end. */
static size_t read_config(char *data, size_t size) {
    char *at = data, *end = data + size;
    config.stop_signal = SIGTERM, config.cwd = "/", config.run = config.hostname = "";
    while (at < end && *at) {
        char *next = memchr(at, 0, end - at);
        if (!next) return 0;
        take_record(at);
        at = next + 1;
    }
    return at < end ? (size_t)(at - data) : 0;
}

static int load_config(void) {
    char *data = NULL;
    size_t length = 0, have = 0;
    if (posix_memalign((void **)&data, 4096, CONFIG + 1)) return 0;
    for (; have < CONFIG && !length; have += BATCH) { /* most are short */
        if (pread(box.fd, data + have, BATCH, HEAD + have) != BATCH) return say("read", "config"), 0;
        for (size_t i = have ? have : 1; i < have + BATCH && !length; i++)
            if (!data[i] && !data[i - 1]) length = i + 1;
    }
    if (!length) return 0;
    write_file(KEPT "/config", data, length); /* as it is: reading takes it apart */
    return read_config(data, length) && config.argc;
}

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
    mkdir("/cgroup/box", 0755);
    int length = snprintf(text, sizeof text, "%ld", config.pids);
    if (!write_file("/cgroup/box/pids.max", text, length)) say("limit", "pids");
}

static int open_root(char *device, size_t size) {
    if (!find_disk("root", device, size)) return say("disk", "root"), 0;
    if (!mount_on(device, "/c", "ext4", MS_NODEV, "noinit_itable")) return 0;
    rmdir("/c/lost+found"); /* of the file system, not of the image */
    return 1;
}

/* In the container. */

static void make_devices(int terminals) {
    static const struct { const char *path; int major, minor; } nodes[] = {
        {"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/full", 1, 7}, {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0},
    };
    static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
        {"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"}, {"pts/ptmx", "/dev/ptmx"}};
    mount_on("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k");
    umask(0);
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        if (mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)) != 0) say("device", nodes[i].path);
    for (size_t i = 0; i < sizeof links / sizeof *links; i++)
        if (symlink(links[i][0], links[i][1]) != 0) say("link", links[i][1]);
    umask(022);
    mkdir("/dev/pts", 0755);
    bind_fd(terminals, "/dev/pts", MS_NOSUID | MS_NOEXEC);
    mount_on("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=65536k");
    mount_on("mqueue", "/dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
}

/* BYTES|0 MODE ro|rw PATH, or SERIAL ro|rw PATH with its device open. What was asked for is there, or the container isn't. */
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
        say("enter", "/c");
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
        say("read-only root", "/");
        _exit(126); /* what was asked for is more than a wish */
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
        say("user", "");
        _exit(126);
    }
}

static void begin_container(int told, int out, int err) {
    int nothing = open("/dev/null", O_RDONLY);
    write_file("/cgroup/box/cgroup.procs", "0", 1);
    fill_root();
    setsid();
    if (fchown(out, config.uid, config.gid) != 0 || fchown(err, config.uid, config.gid) != 0) say("owner", "stdio");
    dup2(nothing, 0), dup2(out, 1), dup2(err, 2);
    if (nothing > 2) close(nothing);
    allow_signals();
    config.env[config.envc] = NULL, config.argv[config.argc] = NULL;
    environ = config.env;
    become_user();
    if (chdir(config.cwd) == 0) execvp(config.argv[0], config.argv);
    int why = errno;
    dprintf(2, "weft: %s: %s\n", config.argv[0], why == ENOENT ? "not found" : strerror(why));
    if (write(told, &why, sizeof why) < 0) _exit(126);
    _exit(why == ENOENT ? 127 : 126);
}

/* Returns its number once its program has begun, or failed to (`why` is set then). */
static pid_t start_container(int *why, int out, int err) {
    int told[2];
    *why = 0;
    if (pipe2(told, O_CLOEXEC) != 0) return -1;
    pid_t pid = syscall(SYS_clone, CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) close(told[0]), begin_container(told[1], out, err);
    close(told[1]), close(out), close(err);
    if (pid > 0 && read(told[0], why, sizeof *why) < 0) say("start", "");
    close(told[0]);
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
    write_file("/cgroup/box/cgroup.procs", "0", 1);
    if (setns(processes, CLONE_NEWPID) != 0 || setns(queues, CLONE_NEWIPC) != 0 || setns(mounts, CLONE_NEWNS) != 0) {
        say("the container has ended", "");
        return 126;
    }
    pid_t pid = fork();
    if (pid < 0) return say("no process", argv[2]), 126;
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
    if (!box.top) reboot(RB_POWER_OFF); /* there is nowhere to say it */
    box.top->head.state = ENDED, box.top->head.how = how, box.top->head.code = code;
    sync(); /* volumes too, which are mounted in the container's mounts alone */
    if (umount2("/c", 0) != 0) mount(NULL, "/c", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    if (box.fd >= 0) write_head(); /* last: whoever reads it may take the machine away */
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

static void watch(pid_t container, int out, int err, int signals) {
    struct pollfd polled[3] = {{signals, POLLIN, 0}, {out, POLLIN, 0}, {err, POLLIN, 0}};
    pid_t agent = start_agent();
    long agent_began = milliseconds(), ended_at = 0, stop_at = 0, may_stop = milliseconds() + SETTLE_MS;
    int status = 0;
    while (!ended_at || ((polled[1].fd >= 0 || polled[2].fd >= 0) && milliseconds() < ended_at + DRAIN_MS)) {
        if (poll(polled, 3, ended_at || stop_at ? 100 : agent ? -1 : 200) < 0 && errno != EINTR) say("poll", "");
        struct signalfd_siginfo told;
        while (read(signals, &told, sizeof told) > 0)
            if (told.ssi_signo == SIGUSR2) stop_at = may_stop;
        /* The kernel drops what the first process of a namespace doesn't handle yet: it has a moment to get ready. */
        if (stop_at && milliseconds() >= stop_at) kill(container, config.stop_signal), stop_at = 0;
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
    uint32_t how = (WIFSIGNALED(status) ? SIGNALLED : 0) | (was_out_of_memory() ? OUT_OF_MEMORY : 0);
    end_machine(how, WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

int main(int argc, char **argv) {
    const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    if (!strcmp(name, "enter")) return enter(argc, argv);
    if (!strcmp(name, "kill-command")) return argc != 2 || kill_command(argv[1]);
    if (!strcmp(name, "poweroff")) return kill(1, SIGUSR2) != 0;

    mount_on("dev", "/dev", "devtmpfs", MS_NOSUID, NULL);
    mount_on("proc", "/proc", "proc", 0, NULL);
    mount_on("sys", "/sys", "sysfs", 0, NULL);
    int console = open("/dev/console", O_RDWR);
    for (int i = 0; console >= 0 && i < 3; i++) dup2(console, i);
    if (console > 2) close(console);
    mount_on("pts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5");
    mkdir(KEPT, 0700), mkdir(KEPT "/exec", 0700), mkdir("/run", 0755), mkdir("/bin", 0755);
    write_file("/run/network-tried", "", 0); /* for the agent's commands: nothing is waited for here */

    load_first_modules();
    if (!open_box()) end_machine(UNSTARTED, 0);
    char device[64] = "";
    int loaded = load_config();
    struct header *head = &box.top->head;
    if (loaded && !strncmp(head->run, config.run, sizeof head->run) && head->state) end_machine(AGAIN, 0);
    strncpy(head->run, config.run, sizeof head->run);
    head->state = BOOTING, head->how = head->code = 0;
    write_head();
    if (!loaded || !open_root(device, sizeof device)) end_machine(UNSTARTED, 0);
    if (sethostname(config.hostname, strlen(config.hostname)) != 0) say("hostname", config.hostname);
    set_up_network();
    limit_processes();
    for (size_t i = 0; i < config.files; i++) {
        char path[64];
        const char *content = config.file[i] + strcspn(config.file[i], " ");
        snprintf(path, sizeof path, KEPT "/file%zu", i);
        write_file(path, content + 1, strlen(content + 1));
    }

    sigset_t handled;
    sigemptyset(&handled);
    sigaddset(&handled, SIGCHLD);
    sigaddset(&handled, SIGUSR2);
    sigprocmask(SIG_BLOCK, &handled, NULL);
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
    watch(container, out[0], err[0], signals);
}
