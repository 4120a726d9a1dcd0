/* PID 1 of a VM that stands on an image of containers: starts what the image says, as its user says, in the image's own files.
 *
 * As /init it loads the virtio modules, mounts the disk "root" and makes it /, sets the network up, mounts volumes, starts weft's
 * guest agent there (its commands are root's, with the image's variables) and then the process. What that prints goes to the
 * console; how it is, and how it ended, the agent tells the host. With its end the machine powers off; after `restart on-failure`
 * one that fails begins again instead.
 * Called as poweroff or reboot it asks PID 1 to stop the process, by its stop signal, and to end.
 *
 * What to run stands in records, WORD VALUE:
 *   /image in the initial RAM disk, each ended by NUL: entrypoint, cmd, env, user, cwd, stop
 *   user-data on the disk "weft-seed" (a tar), each a line, \n and \\ for what a line can't hold: command and arg, which replace
 *   entrypoint and cmd; env, user, cwd; mount VOLUME:/PATH[:ro]; restart on-failure; keep, which is for others; # and anything
 *   machine on the same disk: hostname, nic, nameserver, search; volume, the serial of its disk and its name
 */
#include "machine.h"

enum { PIECE = 8192, WORDS = 4096, BLOCK = 512, SEED = 1 << 20, LONGEST_PAUSE = 30000, GRACE_MS = 86400000, TOLD_MS = 1000 };
#define OWN "/run/weft" /* ours in the image's files: a tmpfs */
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static struct words {
    char *word[WORDS + 1];
    size_t count;
} entrypoint, cmd, command, args, env, mounts, volumes, nics;

static struct {
    const char *user, *cwd, *hostname, *home, *restart;
    char resolv[4096];
    int stop_signal, bad;
    uid_t uid;
    gid_t gid, groups[256];
    size_t group_count;
} run = {.user = "", .cwd = "/", .hostname = "vm", .home = "/", .restart = "", .stop_signal = SIGTERM};

static void add(struct words *list, char *word) {
    if (list->count < WORDS) list->word[list->count++] = word;
    else run.bad = 1;
}

static void set_env(char *pair) {
    size_t length = strcspn(pair, "=") + 1;
    for (size_t i = 0; i < env.count; i++)
        if (!strncmp(env.word[i], pair, length)) {
            env.word[i] = pair;
            return;
        }
    add(&env, pair);
}

static void take_record(char *record, int line) {
    char *value = strchr(record, ' ');
    if (*record == '#' || !*record) return;
    if (value) *value++ = 0;
    else value = record + strlen(record);
    if (!strcmp(record, "entrypoint")) add(&entrypoint, value);
    else if (!strcmp(record, "cmd")) add(&cmd, value);
    else if (!strcmp(record, "command")) add(&command, value);
    else if (!strcmp(record, "arg")) add(&args, value);
    else if (!strcmp(record, "env") && strchr(value, '=')) set_env(value);
    else if (!strcmp(record, "user")) run.user = value;
    else if (!strcmp(record, "cwd")) run.cwd = value;
    else if (!strcmp(record, "stop")) run.stop_signal = atoi(value);
    else if (!strcmp(record, "mount") && strchr(value, ':')) add(&mounts, value);
    else if (!strcmp(record, "restart")) run.restart = value;
    else if (!strcmp(record, "hostname")) run.hostname = value;
    else if (!strcmp(record, "nic")) add(&nics, value);
    else if (!strcmp(record, "volume")) add(&volumes, value);
    else if (!strcmp(record, "nameserver") || !strcmp(record, "search")) {
        size_t at = strlen(run.resolv);
        snprintf(run.resolv + at, sizeof run.resolv - at, "%s %s\n", record, value);
    } else if (strcmp(record, "keep")) {
        dprintf(2, "weft: line %d of its user data: %.60s is not a known word\n", line, record);
        run.bad = 1;
    }
}

static void read_image(void) {
    static char data[SEED];
    ssize_t length = read_file("/image", data, sizeof data);
    for (char *at = data, *next; at < data + length; at = next) {
        next = at + strlen(at) + 1; /* a record is taken apart */
        take_record(at, 0);
    }
}

static void read_lines(char *text) {
    for (int number = 1; text; number++) {
        char *next = strchr(text, '\n'), *to = text;
        if (next) *next++ = 0;
        for (char *from = text; *from; from++) {
            if (*from == '\\' && from[1]) *to++ = *++from == 'n' ? '\n' : *from;
            else *to++ = *from;
        }
        *to = 0;
        take_record(text, number);
        text = next;
    }
}

/* The seed: a tar of a few short files, ./NAME. */
static void read_seed(const char *device) {
    int fd = open(device, O_RDONLY | O_CLOEXEC);
    char *data = calloc(1, SEED + 1);
    size_t have = 0;
    for (ssize_t n; data && have < SEED && (n = read(fd, data + have, SEED - have)) > 0;) have += n;
    for (size_t at = 0; data && at + BLOCK <= have && !strncmp(data + at + 257, "ustar", 5);) {
        char *head = data + at, *body = head + BLOCK;
        size_t size = strtoul(head + 124, NULL, 8);
        if (at + BLOCK + size > have) break;
        char *text = strndup(body, size);
        if (text && (!strcmp(head, "./user-data") || !strcmp(head, "./machine"))) read_lines(text);
        at += BLOCK + (size + BLOCK - 1) / BLOCK * BLOCK;
    }
    free(data);
    close(fd);
}

/* Who runs it. */

static int is_number(const char *text) { return *text && !text[strspn(text, "0123456789")]; }

/* The line of a passwd or group file whose field `field` is `wanted`, taken apart; how many fields it has, 0 if there is none. */
static int find_line(const char *path, int field, const char *wanted, char *line, size_t size, char *fields[8]) {
    FILE *file = fopen(path, "re");
    int found = 0;
    while (file && !found && fgets(line, size, file)) {
        char *rest = line;
        int count = 0;
        line[strcspn(line, "\n")] = 0;
        for (char *part; count < 7 && (part = strsep(&rest, ":"));) fields[count++] = part;
        found = count > field && !strcmp(fields[field], wanted) ? count : 0;
    }
    if (file) fclose(file);
    return found;
}

static void add_groups(const char *login) {
    FILE *file = fopen("/etc/group", "re");
    char line[65536];
    while (file && fgets(line, sizeof line, file)) {
        char *fields[4] = {0}, *rest = line;
        line[strcspn(line, "\n")] = 0;
        for (int i = 0; i < 4; i++) fields[i] = strsep(&rest, ":");
        for (char *member; fields[3] && (member = strsep(&fields[3], ","));)
            if (!strcmp(member, login) && run.group_count < 256 && is_number(fields[2]))
                run.groups[run.group_count++] = strtoul(fields[2], NULL, 10);
    }
    if (file) fclose(file);
}

/* USER[:GROUP] by the image's own files, as Docker has it. */
static int find_user(void) {
    static char line[65536], name[256];
    char *fields[8], *group;
    snprintf(name, sizeof name, "%s", *run.user ? run.user : "0");
    if ((group = strchr(name, ':'))) *group++ = 0;
    int known = find_line("/etc/passwd", 0, name, line, sizeof line, fields);
    if (!known && is_number(name)) known = find_line("/etc/passwd", 2, name, line, sizeof line, fields);
    if (!known && !is_number(name)) return dprintf(2, "weft: the image has no user %s\n", name), 0;
    run.uid = strtoul(known > 2 ? fields[2] : name, NULL, 10);
    if (known > 3) {
        run.gid = strtoul(fields[3], NULL, 10);
        if (known > 5 && *fields[5]) run.home = strdup(fields[5]);
        if (!group) add_groups(strdup(fields[0]));
    }
    if (!group) return 1;
    known = find_line("/etc/group", 0, group, line, sizeof line, fields);
    if (!known && !is_number(group)) return dprintf(2, "weft: the image has no group %s\n", group), 0;
    run.gid = strtoul(known > 2 ? fields[2] : group, NULL, 10);
    return 1;
}

/* The machine. */

static void copy_file(const char *from, const char *to) {
    struct stat facts;
    int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
    char *data = in >= 0 && fstat(in, &facts) == 0 ? malloc(facts.st_size) : NULL;
    if (!data || read(in, data, facts.st_size) != facts.st_size || write(out, data, facts.st_size) != facts.st_size) log_failure("copy", from);
    free(data), close(in), close(out);
    unlink(from);
}

static void go_to_root(void) {
    mount_on("own", "/c" OWN, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=4m");
    copy_file("/weft-agent", "/c" OWN "/weft-agent");
    copy_file("/init", "/c" OWN "/poweroff");
    if (symlink("poweroff", "/c" OWN "/reboot") != 0) log_failure("link", "reboot");
    enter_root("/c");
    mount_on("pts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666,gid=5");
    mount_on("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
        {"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"}};
    for (int i = 0; i < 4; i++)
        if (symlink(links[i][0], links[i][1]) != 0 && errno != EEXIST) log_failure("link", links[i][1]);
    write_file("/run/network-tried", "", 0); /* for the agent's commands: nothing is waited for here */
}

static void write_etc(const char *name, const char *text) {
    char path[64];
    snprintf(path, sizeof path, "/etc/%s", name);
    mkdir("/etc", 0755);
    unlink(path); /* it may be a link */
    if (!write_file(path, text, strlen(text))) log_failure("write", path);
}

static void set_up_network(void) {
    char text[512], address[20] = "127.0.1.1";
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bring_up(fd, "lo");
    for (size_t i = 0; i < nics.count; i++) set_up_nic(fd, nics.word[i]);
    if (nics.count) sscanf(nics.word[0], "%*s %19s", address);
    close(fd);
    write_file("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0", 1);
    write_file("/proc/sys/net/ipv4/ping_group_range", "0 2147483647", 12);
    if (sethostname(run.hostname, strlen(run.hostname)) != 0) log_failure("hostname", run.hostname);
    snprintf(text, sizeof text, "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n%s %.64s\n", address, run.hostname);
    write_etc("hosts", text);
    snprintf(text, sizeof text, "%.64s\n", run.hostname);
    write_etc("hostname", text);
    write_etc("resolv.conf", run.resolv);
}

/* VOLUME:/PATH[:ro] */
static int mount_volume(const char *text) {
    char serial[32] = "", path[4096], device[64];
    size_t length = strcspn(text, ":");
    for (size_t i = 0; i < volumes.count; i++) { /* SERIAL NAME */
        const char *name = strchr(volumes.word[i], ' ');
        if (name && strlen(name + 1) == length && !strncmp(name + 1, text, length))
            snprintf(serial, sizeof serial, "%.*s", (int)(name - volumes.word[i]), volumes.word[i]);
    }
    snprintf(path, sizeof path, "%s", strchr(text, ':') + 1);
    char *mode = strchr(path, ':');
    if (mode) *mode++ = 0;
    unsigned long flags = mode && !strcmp(mode, "ro") ? MS_RDONLY : 0;
    if (!*serial || !find_disk(serial, device, sizeof device) ||
        !mount_on(device, path, "ext4", MS_NOSUID | MS_NODEV | flags, "errors=remount-ro"))
        return dprintf(2, "weft: volume %.*s can't be mounted on %s\n", (int)length, text, path), 0;
    char inside[4200];
    snprintf(inside, sizeof inside, "%s/lost+found", path);
    if (!flags) rmdir(inside); /* databases want their folder empty */
    return 1;
}

static void end_machine(int how) {
    await_grown();
    kill(-1, SIGTERM);
    for (int tries = 0; tries < 20 && waitpid(-1, NULL, WNOHANG) >= 0; tries++) usleep(20000);
    kill(-1, SIGKILL);
    sync();
    for (size_t i = mounts.count; i > 0; i--) {
        char path[4096];
        snprintf(path, sizeof path, "%s", strchr(mounts.word[i - 1], ':') + 1);
        path[strcspn(path, ":")] = 0;
        if (umount2(path, 0) != 0) mount(NULL, path, NULL, MS_REMOUNT | MS_RDONLY, NULL);
    }
    mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    reboot(how);
    for (;;) pause();
}

/* What runs in it. */

static void be_own(const char *oom_score_adj) {
    allow_signals();
    setsid();
    write_file("/proc/self/oom_score_adj", oom_score_adj, strlen(oom_score_adj));
    env.word[env.count] = NULL;
}

static pid_t start_agent(void) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    be_own("-1000");
    sigset_t news;
    sigemptyset(&news);
    sigaddset(&news, SIGUSR1);
    sigprocmask(SIG_BLOCK, &news, NULL); /* until it has found its feet */
    int nothing = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3; i++) dup2(nothing, i);
    char *words[] = {"weft-agent", NULL}, path[8192];
    environ = env.word;
    const char *theirs = getenv("PATH");
    snprintf(path, sizeof path, OWN ":%s", theirs ? theirs : DEFAULT_PATH); /* its poweroff, not the image's */
    setenv("PATH", path, 1);
    execv(OWN "/weft-agent", words);
    _exit(127);
}

static pid_t start_process(char **argv, int out) {
    pid_t pid = fork();
    if (pid != 0) return pid;
    struct rlimit files = {1024, 1 << 20};
    int nothing = open("/dev/null", O_RDONLY);
    be_own("0");
    setrlimit(RLIMIT_NOFILE, &files);
    if (fchown(out, run.uid, run.gid) != 0) log_failure("owner", "stdout");
    dup2(nothing, 0), dup2(out, 1), dup2(out, 2);
    environ = env.word;
    make_folders(run.cwd);
    if (setgroups(run.group_count, run.groups) != 0 || setresgid(run.gid, run.gid, run.gid) != 0 ||
        setresuid(run.uid, run.uid, run.uid) != 0 || chdir(run.cwd) != 0)
        log_failure("run in", run.cwd), _exit(126);
    execvp(argv[0], argv);
    dprintf(2, "weft: %s: %s\n", argv[0], errno == ENOENT ? "not found" : strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

static int relay(int from) {
    char data[PIECE];
    ssize_t n = read(from, data, sizeof data);
    for (ssize_t at = 0, done; at < n; at += done)
        if ((done = write(1, data + at, n - at)) <= 0) return 0;
    return n > 0;
}

static void tell_end(const char *name, int status) {
    if (WIFSIGNALED(status)) dprintf(2, "weft: %s was ended by signal %d\n", name, WTERMSIG(status));
    else if (WEXITSTATUS(status)) dprintf(2, "weft: %s ended with exit code %d\n", name, WEXITSTATUS(status));
}

/* For the agent to tell: whether the process runs, how often it has ended by itself, and how the last time. */
static void note_process(pid_t agent, int runs, unsigned ends, int status) {
    char text[64];
    int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    int length = snprintf(text, sizeof text, "%d %u %d\n", runs, ends, code);
    if (!write_file(OWN "/process.new", text, length) || rename(OWN "/process.new", OWN "/process") != 0) log_failure("write", "process");
    if (agent) kill(agent, SIGUSR1);
}

/* Nobody hears of its end once the machine is off. */
static void await_signal(void) {
    for (long until = milliseconds() + TOLD_MS; milliseconds() < until; usleep(2000))
        if (access(OWN "/process", F_OK) != 0 && access(OWN "/process.taken", F_OK) != 0) return;
}

static void watch(char **argv, int signals) {
    int out[2], stop = 0, by_itself = 0, status, last = 0;
    unsigned ends = 0;
    if (pipe2(out, O_CLOEXEC) != 0) end_machine(RB_POWER_OFF);
    fcntl(out[0], F_SETFL, O_NONBLOCK);
    note_process(0, 1, 0, 0);
    pid_t agent = start_agent(), process = start_process(argv, out[1]);
    long agent_began = milliseconds(), began = agent_began, pause = 1000, ended_at = 0;
    struct pollfd polled[2] = {{signals, POLLIN, 0}, {out[0], POLLIN, 0}};
    for (;;) {
        if (poll(polled, 2, agent && process ? -1 : 100) < 0 && errno != EINTR) log_failure("poll", "");
        struct signalfd_siginfo signalled;
        while (read(signals, &signalled, sizeof signalled) > 0)
            if (signalled.ssi_signo != SIGCHLD) {
                stop = signalled.ssi_signo == SIGTERM ? RB_AUTOBOOT : RB_POWER_OFF;
                if (process) kill(process, run.stop_signal);
            }
        for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
            if (pid == agent) agent = 0;
            if (pid == grower) grower = 0;
            if (pid != process) continue;
            while (relay(out[0])) {
            }
            tell_end(argv[0], status);
            process = 0, ended_at = milliseconds(), last = status, by_itself = !stop;
            if (by_itself) note_process(agent, 0, ++ends, last);
            if (ended_at - began > LONGEST_PAUSE) pause = 1000;
            if (!status || strcmp(run.restart, "on-failure") != 0) stop = stop ? stop : RB_POWER_OFF;
        }
        relay(out[0]);
        if (!process && stop) {
            if (by_itself) await_signal();
            end_machine(stop);
        }
        if (!process && milliseconds() > ended_at + pause) {
            process = start_process(argv, out[1]), began = milliseconds();
            note_process(agent, 1, ends, last);
            pause = pause * 2 < LONGEST_PAUSE ? pause * 2 : LONGEST_PAUSE;
        }
        if (!agent && milliseconds() > agent_began + 1000) {
            note_process(0, process != 0, ends, last); /* the one before has taken it */
            agent = start_agent(), agent_began = milliseconds();
        }
    }
}

static char **choose_argv(void) {
    static struct words chosen;
    if (!command.count) for (size_t i = 0; i < entrypoint.count; i++) add(&chosen, entrypoint.word[i]);
    for (size_t i = 0; i < command.count; i++) add(&chosen, command.word[i]);
    const struct words *rest = command.count || args.count ? &args : &cmd;
    for (size_t i = 0; i < rest->count; i++) add(&chosen, rest->word[i]);
    chosen.word[chosen.count] = NULL;
    return chosen.word;
}

int main(int argc, char **argv) {
    const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
    if (argc && !strcmp(name, "poweroff")) return kill(1, SIGUSR2) != 0;
    if (argc && !strcmp(name, "reboot")) return kill(1, SIGTERM) != 0;

    mount_kernel_folders();
    load_virtio();
    load_modules(first_modules);
    load_modules(more_modules);
    char device[64] = "", path[] = "PATH=" DEFAULT_PATH, home[4096];
    set_env(path);
    read_image();
    if (!find_disk("root", device, sizeof device) || !mount_on(device, "/c", "ext4", MS_NODEV, "noinit_itable")) {
        dprintf(2, "weft: there is no root to mount\n");
        reboot(RB_POWER_OFF);
    }
    rmdir("/c/lost+found"); /* of the file system, not of the image */
    if (find_disk("weft-seed", device, sizeof device)) read_seed(device);
    find_disk("root", device, sizeof device);
    grow_root(device, "/c");
    go_to_root();
    set_up_network();

    static const int handled_signals[] = {SIGCHLD, SIGUSR1, SIGUSR2, SIGTERM, 0};
    sigset_t handled = hold_signals(handled_signals);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &handled, SFD_NONBLOCK | SFD_CLOEXEC);
    for (size_t i = 0; i < mounts.count; i++) run.bad |= !mount_volume(mounts.word[i]);
    run.bad |= !find_user();
    snprintf(home, sizeof home, "HOME=%s", run.home);
    int has_home = 0;
    for (size_t i = 0; i < env.count; i++) has_home |= !strncmp(env.word[i], "HOME=", 5);
    if (!has_home) set_env(home);
    char **what = choose_argv();
    if (!*what) dprintf(2, "weft: the image names no command to run\n");
    if (run.bad || !*what) end_machine(RB_POWER_OFF); /* it doesn't run without its configuration */
    watch(what, signals);
}
