/* PID 1 of a machine that is copied: it brings a function's runtime up, holds the runtime's first request for an invocation,
 * and is copied while it waits. In a copy nothing of the function runs before the copy has a clock, randomness and a name of
 * its own. From then on it only carries bytes between the runtime and the host's Runtime API.
 *
 * The runtime calls 127.0.0.1:9001. While the machine comes up, what it asks is answered in here. The host is 169.254.100.1:
 *   TCP 9001  the Runtime API, from the copies
 *   TCP 9000  frames to the host, u8 kind, u32 length (little endian), content: o what the function printed, i the body of
 *             init/error, x how the runtime ended (i32 code, i32 signal, u32 out of memory, u64 most memory),
 *             r ready to be copied, e what went wrong in here, in words,
 *             t all that was printed before datagram T (u64 its number) came is told
 *   UDP 9000  datagrams, u8 kind, u64 number:  to the guest    W woken: ask    F fresh (struct fresh)    S stand still
 *                                                                M how much memory    T tell what was printed
 *                                              from the guest  Q asks for F    D done, the function runs P stands still
 *                                                                M that, as P says it too
 * What the function is: /config in the initial RAM file system, records KEY VALUE NUL.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define HOST "169.254.100.1"
#define GUEST "169.254.100.2"
#define HOST_MAC "\x02\0\0\0\x64\x01"
#define ROOT "/root"
#define GROUP "/groups/function"
#define NOTES ROOT "/run/weft" /* what the Python side and this one tell each other */

enum { API_PORT = 9001, HOST_PORT = 9000, MOST = 32, BUFFER = 65536, WORDS = 512, FROZEN_MS = 200 };
enum { NONE, RESET, BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER }; /* where in a request */

struct fresh {
    char kind;
    char unused[7];
    uint64_t number, now_ns;
    unsigned char seed[32];
    uint32_t practice, park; /* practise so many calls; then stand still instead of going on */
    char name[64];
} __attribute__((packed));

struct flow {
    char *bytes;
    size_t start, end;
    int ended, told;
};

struct line { /* of the runtime to us, and on to the host */
    int runtime, host, joined, dialling, where, held;
    long left;
    struct flow up, down;
    int wants_error_body;
};

static struct line lines[MOST];
static struct flow said; /* frames on their way to the host */
static int listener = -1, wake = -1, printed = -1, report = -1, report_dialling, signals = -1;
static int live, parked, parking, quiet, frozen, calls_left, practice, ready_told, may_be_copied;
static uint64_t done_number, held_number, told_number; /* told_number: of a T that isn't answered yet */
static pid_t runtime;
static char *config, *argv[WORDS], *env[WORDS], *workdir = "/";
static const char *resolver; /* what it is to find in /etc/resolv.conf */
static char arn[256] = "arn:weft:lambda:weft:default:function:function";
static unsigned uid, gid, timeout_ms = 30000, warm_calls, has_code, mtu; /* mtu: of the network that it is led into; else 0 */
static uint64_t memory_bytes, tmp_bytes = 64 << 20, pids = 256;

static const char *const modules[] = {"virtio_ring",  "virtio",       "virtio_pci_legacy_dev", "virtio_pci_modern_dev",
                                      "virtio_pci",   "virtio_mmio",  "failover",              "net_failover",
                                      "virtio_net",   "virtio_blk",   NULL};

/* What there is to tell. */

static void queue_frame(char kind, const void *content, size_t size) {
    if (size > BUFFER - 5 || said.end + 5 + size > 2 * BUFFER) return;
    uint32_t length = (uint32_t)size;
    said.bytes[said.end] = kind;
    memcpy(said.bytes + said.end + 1, &length, 4);
    memcpy(said.bytes + said.end + 5, content, size);
    said.end += 5 + size;
}

static void trouble(const char *format, ...) {
    char text[512];
    va_list rest;
    va_start(rest, format);
    int size = vsnprintf(text, sizeof text - 1, format, rest);
    va_end(rest);
    if (size > (int)sizeof text - 1) size = sizeof text - 1;
    dprintf(2, "init: %s\n", text);
    queue_frame('e', text, (size_t)size);
}

static int write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t wrote = write(fd, text, strlen(text));
    close(fd);
    return wrote < 0 ? -1 : 0;
}

static uint64_t read_number(const char *path, const char *word) {
    char text[1024];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size <= 0) return 0;
    text[size] = 0;
    char *at = word ? strstr(text, word) : text;
    return at ? strtoull(at + (word ? strlen(word) : 0), NULL, 10) : 0;
}

/* Coming up. */

static void load_modules(void) {
    for (const char *const *name = modules; *name; name++) {
        char path[64];
        snprintf(path, sizeof path, "/modules/%s.ko", *name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0) continue;
        if (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST && errno != ENODEV)
            trouble("module %s: %s", *name, strerror(errno));
        close(fd);
        unlink(path); /* what lies here stays in memory */
    }
}

static void credit(const unsigned char *seed) {
    struct {
        int bits, size;
        unsigned char bytes[32];
    } pool = {256, 32, {0}};
    memcpy(pool.bytes, seed, 32);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) != 0 || ioctl(fd, RNDRESEEDCRNG, 0) != 0)
        trouble("randomness: %s", strerror(errno));
    if (fd >= 0) close(fd);
    explicit_bzero(&pool, sizeof pool);
}

static void set_clock(uint64_t ns) {
    struct timespec now = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    if (clock_settime(CLOCK_REALTIME, &now) != 0) trouble("clock: %s", strerror(errno));
}

static void take_seed(const char *hex) {
    unsigned char seed[32];
    for (int i = 0; i < 32; i++)
        if (sscanf(hex + 2 * i, "%2hhx", &seed[i]) != 1) return;
    credit(seed);
}

static void read_config(void) {
    int fd = open("/config", O_RDONLY | O_CLOEXEC), words = 0, settings = 0;
    struct stat found;
    if (fd < 0 || fstat(fd, &found) != 0) return trouble("no /config");
    config = calloc(1, (size_t)found.st_size + 2);
    ssize_t size = config ? read(fd, config, (size_t)found.st_size) : -1;
    close(fd);
    unlink("/config");
    for (char *at = config; size > 0 && at < config + size && *at; at += strlen(at) + 1) {
        char *value = strchr(at, ' ');
        if (!value) continue;
        char *key = at;
        *value++ = 0;
        at = value;
        if (!strcmp(key, "argument") && words < WORDS - 1) argv[words++] = value;
        else if (!strcmp(key, "env") && settings < WORDS - 1) env[settings++] = value;
        else if (!strcmp(key, "workdir")) workdir = value;
        else if (!strcmp(key, "arn")) snprintf(arn, sizeof arn, "%s", value);
        else if (!strcmp(key, "uid")) uid = (unsigned)strtoul(value, NULL, 10);
        else if (!strcmp(key, "gid")) gid = (unsigned)strtoul(value, NULL, 10);
        else if (!strcmp(key, "memory")) memory_bytes = strtoull(value, NULL, 10);
        else if (!strcmp(key, "tmp")) tmp_bytes = strtoull(value, NULL, 10);
        else if (!strcmp(key, "mtu")) mtu = (unsigned)strtoul(value, NULL, 10);
        else if (!strcmp(key, "resolver")) resolver = value;
        else if (!strcmp(key, "pids")) pids = strtoull(value, NULL, 10);
        else if (!strcmp(key, "timeout")) timeout_ms = (unsigned)strtoul(value, NULL, 10);
        else if (!strcmp(key, "warm")) warm_calls = (unsigned)strtoul(value, NULL, 10);
        else if (!strcmp(key, "practice")) practice = atoi(value);
        else if (!strcmp(key, "code")) has_code = 1;
        else if (!strcmp(key, "now")) set_clock(strtoull(value, NULL, 10));
        else if (!strcmp(key, "seed")) take_seed(value);
    }
}

/* Its node leads it into a network. */
static void lead_out(int s) {
    struct ifreq eth = {.ifr_name = "eth0"};
    struct rtentry way = {.rt_flags = RTF_UP | RTF_GATEWAY};
    struct sockaddr_in *to = (void *)&way.rt_dst, *mask = (void *)&way.rt_genmask, *by = (void *)&way.rt_gateway;
    eth.ifr_mtu = (int)mtu;
    if (ioctl(s, SIOCSIFMTU, &eth) != 0) trouble("mtu: %s", strerror(errno));
    to->sin_family = mask->sin_family = by->sin_family = AF_INET;
    inet_pton(AF_INET, HOST, &by->sin_addr);
    if (ioctl(s, SIOCADDRT, &way) != 0) trouble("route: %s", strerror(errno));
}

static void set_network_up(void) {
    int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq lo = {.ifr_name = "lo"}, eth = {.ifr_name = "eth0"};
    struct sockaddr_in *address = (void *)&eth.ifr_addr;
    lo.ifr_flags = IFF_UP;
    if (ioctl(s, SIOCSIFFLAGS, &lo) != 0) trouble("lo: %s", strerror(errno));
    address->sin_family = AF_INET;
    inet_pton(AF_INET, GUEST, &address->sin_addr);
    if (ioctl(s, SIOCSIFADDR, &eth) != 0) trouble("eth0: %s", strerror(errno));
    inet_pton(AF_INET, "255.255.255.252", &address->sin_addr);
    if (ioctl(s, SIOCSIFNETMASK, &eth) != 0) trouble("eth0: %s", strerror(errno));
    eth.ifr_flags = IFF_UP;
    if (ioctl(s, SIOCSIFFLAGS, &eth) != 0) trouble("eth0: %s", strerror(errno));
    struct arpreq near = {.arp_flags = ATF_PERM | ATF_COM, .arp_dev = "eth0"};
    struct sockaddr_in *peer = (void *)&near.arp_pa;
    peer->sin_family = AF_INET;
    inet_pton(AF_INET, HOST, &peer->sin_addr);
    near.arp_ha.sa_family = ARPHRD_ETHER;
    memcpy(near.arp_ha.sa_data, HOST_MAC, 6);
    if (ioctl(s, SIOCSARP, &near) != 0) trouble("arp: %s", strerror(errno));
    if (mtu) lead_out(s);
    close(s);
}

static void must_mount(const char *source, const char *target, const char *type, unsigned long flags, const char *options) {
    if (mount(source, target, type, flags, options) != 0) trouble("mount %s at %s: %s", source, target, strerror(errno));
}

static void wait_for_disk(const char *path) {
    for (int tries = 0; access(path, F_OK) != 0 && tries < 500; tries++) usleep(10000);
}

static void make_devices(void) {
    static const struct {
        const char *path;
        int major, minor;
    } nodes[] = {{ROOT "/dev/null", 1, 3},   {ROOT "/dev/zero", 1, 5},    {ROOT "/dev/full", 1, 7},
                 {ROOT "/dev/random", 1, 8}, {ROOT "/dev/urandom", 1, 9}, {ROOT "/dev/tty", 5, 0}};
    must_mount("dev", ROOT "/dev", "tmpfs", MS_NOSUID, "mode=0755,size=64k");
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        if (mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)) != 0)
            trouble("%s: %s", nodes[i].path, strerror(errno));
    int bad = symlink("/proc/self/fd", ROOT "/dev/fd") | symlink("/proc/self/fd/0", ROOT "/dev/stdin") |
              symlink("/proc/self/fd/1", ROOT "/dev/stdout") | symlink("/proc/self/fd/2", ROOT "/dev/stderr") |
              mkdir(ROOT "/dev/shm", 01777);
    if (bad) trouble("/dev: %s", strerror(errno));
    must_mount("shm", ROOT "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
}

static void copy_file(const char *from, const char *to) {
    static char piece[BUFFER];
    int in = open(from, O_RDONLY | O_CLOEXEC);
    int out = in < 0 ? -1 : open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    for (ssize_t size; out >= 0 && (size = read(in, piece, sizeof piece)) > 0;)
        if (write(out, piece, (size_t)size) != size) trouble("%s: %s", to, strerror(errno));
    if (in >= 0) close(in);
    if (out >= 0) close(out);
}

static void lay_out_root(void) {
    char options[64];
    wait_for_disk("/dev/vda");
    must_mount("/dev/vda", ROOT, "ext4", MS_RDONLY | MS_NOATIME | MS_NODEV, "");
    if (has_code) {
        wait_for_disk("/dev/vdb");
        must_mount("/dev/vdb", ROOT "/var/task", "ext4", MS_RDONLY | MS_NOATIME | MS_NODEV | MS_NOSUID, "");
    }
    must_mount("proc", ROOT "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
    must_mount("sys", ROOT "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, "");
    make_devices();
    must_mount("run", ROOT "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m");
    snprintf(options, sizeof options, "mode=1777,size=%llu", (unsigned long long)tmp_bytes);
    must_mount("tmp", ROOT "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options);
    mkdir(NOTES, 0755);
    copy_file("/sitecustomize.py", NOTES "/sitecustomize.py");
    if (resolver) {
        int names = open(NOTES "/resolv.conf", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        if (names < 0 || write(names, resolver, strlen(resolver)) < 0) trouble("resolv.conf: %s", strerror(errno));
        if (names >= 0) close(names);
        must_mount(NOTES "/resolv.conf", ROOT "/etc/resolv.conf", "", MS_BIND, "");
    }
    int fd = open(NOTES "/practises", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || fchown(fd, uid, gid) != 0) trouble(NOTES ": %s", strerror(errno));
    if (fd >= 0) close(fd);
}

static void make_group(void) {
    char text[32];
    must_mount("groups", "/groups", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
    write_file("/groups/cgroup.subtree_control", "+memory +pids");
    if (mkdir(GROUP, 0755) != 0) trouble("group: %s", strerror(errno));
    snprintf(text, sizeof text, "%llu", (unsigned long long)memory_bytes);
    if (memory_bytes && write_file(GROUP "/memory.max", text) != 0) trouble("memory.max: %s", strerror(errno));
    snprintf(text, sizeof text, "%llu", (unsigned long long)pids);
    if (write_file(GROUP "/pids.max", text) != 0) trouble("pids.max: %s", strerror(errno));
    write_file(GROUP "/memory.oom.group", "1"); /* a function that has lost a part is of no use */
}

static struct sockaddr_in place(const char *address, int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, address, &at.sin_addr);
    return at;
}

static void open_sockets(void) {
    struct sockaddr_in here = place(GUEST, HOST_PORT), there = place(HOST, HOST_PORT), own = place("127.0.0.1", API_PORT);
    int yes = 1;
    wake = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (bind(wake, (void *)&here, sizeof here) != 0 || connect(wake, (void *)&there, sizeof there) != 0)
        trouble("wake: %s", strerror(errno));
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (void *)&own, sizeof own) != 0 || listen(listener, 16) != 0)
        trouble("runtime api: %s", strerror(errno));
}

static int dial(int port, int *dialling) {
    struct sockaddr_in there = place(HOST, port);
    int yes = 1, s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (s < 0) return -1;
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    *dialling = connect(s, (void *)&there, sizeof there) != 0;
    if (*dialling && errno != EINPROGRESS) {
        close(s);
        return -1;
    }
    return s;
}

static void start_runtime(void) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return trouble("pipe: %s", strerror(errno));
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    printed = ends[0];
    runtime = fork();
    if (runtime == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        setsid();
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        write_file(GROUP "/cgroup.procs", "0");
        int nothing = open(ROOT "/dev/null", O_RDONLY);
        dup2(nothing, 0);
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        for (int fd = 3; fd < 64; fd++) close(fd);
        if (chroot(ROOT) != 0 || chdir("/") != 0 || setgroups(0, NULL) != 0 || setgid(gid) != 0 || setuid(uid) != 0)
            dprintf(2, "init: %s\n", strerror(errno));
        else if (chdir(workdir) != 0) dprintf(2, "working directory %s: %s\n", workdir, strerror(errno));
        else {
            environ = env;
            execvpe(argv[0] ? argv[0] : "", argv, env);
            dprintf(2, "%s: %s\n", argv[0] ? argv[0] : "no command", strerror(errno));
        }
        _exit(127);
    }
    close(ends[1]);
    if (runtime < 0) trouble("fork: %s", strerror(errno));
}

/* Standing still, and being told what is fresh. */

static void freeze(int still) {
    if (still == frozen) return;
    write_file(GROUP "/cgroup.freeze", still ? "1" : "0");
    for (int ms = 0; still && ms < 4 * FROZEN_MS && !read_number(GROUP "/cgroup.events", "frozen "); ms++) usleep(250);
    frozen = still;
}

static void answer(char kind, uint64_t number) {
    struct {
        char kind, unused[7];
        uint64_t number, most_memory;
    } datagram = {kind, {0}, number, 0};
    if (kind == 'P' || kind == 'M') datagram.most_memory = read_number(GROUP "/memory.peak", NULL);
    if (send(wake, &datagram, sizeof datagram, 0) < 0) trouble("wake: %s", strerror(errno));
}

static void leave_note(void) {
    int fd = open(NOTES "/resumed", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd >= 0) close(fd);
}

static void go_live(void);
static void practise(void);
static void hear_output(void);

static void take_fresh(const struct fresh *fresh) {
    char name[65] = "";
    set_clock(fresh->now_ns);
    credit(fresh->seed);
    memcpy(name, fresh->name, 64);
    if (sethostname(name, strlen(name)) != 0) trouble("hostname: %s", strerror(errno));
    leave_note();
    done_number = fresh->number;
    parked = 0;
    parking = fresh->park != 0;
    quiet = calls_left = 0;
    if (!live && practice) calls_left = practice = (int)fresh->practice;
    if (!parking || calls_left) freeze(0);
    if (calls_left) practise();
    else go_live();
    if (!parking) answer('D', done_number);
}

static void hear(void) {
    struct fresh fresh;
    for (ssize_t size; (size = recv(wake, &fresh, sizeof fresh, 0)) >= 16;) {
        if (fresh.kind == 'W') answer('Q', fresh.number);
        else if (fresh.kind == 'M') answer('M', fresh.number);
        else if (fresh.kind == 'T') {
            told_number = fresh.number;
            hear_output();
        }
        else if (fresh.kind == 'F' && size == sizeof fresh) {
            if (fresh.number != done_number) take_fresh(&fresh);
            else if (parked) answer('P', done_number);
            else if (!parking) answer('D', done_number);
        } else if (fresh.kind == 'S') {
            freeze(1);
            held_number = fresh.number;
            answer('P', held_number);
        }
        explicit_bzero(&fresh, sizeof fresh);
    }
}

/* The runtime's requests, answered in here. */

static void put(struct flow *flow, const char *text, size_t size) {
    if (flow->start == flow->end) flow->start = flow->end = 0;
    if (flow->end + size > BUFFER) return;
    memcpy(flow->bytes + flow->end, text, size);
    flow->end += size;
}

static void reply(struct line *line, const char *status, const char *body) {
    char text[512];
    int size = snprintf(text, sizeof text, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                        status, strlen(body), body);
    put(&line->down, text, (size_t)size);
}

static void hand_out_call(struct line *line) {
    char text[1024], id[48];
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int practising = calls_left <= practice;
    if (practising) snprintf(id, sizeof id, calls_left == 1 && !live && !parking ? "weft-practice-last" : "weft-practice");
    else snprintf(id, sizeof id, "00000000-0000-4000-8000-%012x", (unsigned)calls_left);
    if (practising) quiet = 1;
    calls_left--;
    int size = snprintf(text, sizeof text,
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nLambda-Runtime-Aws-Request-Id: %s\r\n"
                        "Lambda-Runtime-Deadline-Ms: %lld\r\nLambda-Runtime-Invoked-Function-Arn: %s\r\n"
                        "Lambda-Runtime-Trace-Id: Root=1-00000000-000000000000000000000000;Sampled=0\r\n"
                        "Content-Length: 2\r\n\r\n{}",
                        id, (long long)now.tv_sec * 1000 + now.tv_nsec / 1000000 + timeout_ms, arn);
    put(&line->down, text, (size_t)size);
}

static void hold(struct line *line) {
    line->held = 1;
    if (ready_told) return go_live(); /* a copy that has practised */
    freeze(1);
    quiet = 0;
    ready_told = 1;
    queue_frame('r', "", 0);
}

/* A request for an invocation is whole in the buffer and stays there while it is held. */
static void next_wanted(struct line *line, size_t head) {
    static int begun;
    if (!begun && !ready_told) { /* how many calls come first: the handler's if they are wished for, then practice */
        begun = 1;
        if (!read_number(NOTES "/practises", NULL)) practice = 0;
        calls_left = (int)warm_calls + practice;
    }
    if (!calls_left) return hold(line);
    line->up.start += head;
    hand_out_call(line);
}

static const char *header(const char *head, const char *end, const char *name) {
    size_t length = strlen(name);
    for (const char *at = head; at + length < end; at++)
        if (at[-1] == '\n' && !strncasecmp(at, name, length)) {
            for (at += length; *at == ' '; at++) {
            }
            return at;
        }
    return NULL;
}

static int begin_request(struct line *line) {
    struct flow *up = &line->up;
    char *head = up->bytes + up->start, *end = memmem(head, up->end - up->start, "\r\n\r\n", 4);
    if (!end) {
        if (up->end - up->start == BUFFER) line->up.ended = line->up.told = 1, up->start = up->end;
        return 0;
    }
    size_t size = (size_t)(end + 4 - head);
    char *eol = memchr(head, '\r', size);
    *eol = 0; /* the first line as a string, for a moment */
    int next = !strncmp(head, "GET ", 4) && strstr(head, "/runtime/invocation/next") != NULL;
    int init_error = strstr(head, "/runtime/init/error") != NULL, restore = strstr(head, "/runtime/restore/next") != NULL;
    int known = strstr(head, "/runtime/invocation/") != NULL;
    *eol = '\r';
    if (next) {
        next_wanted(line, size);
        return !line->held;
    }
    const char *length = header(head + 1, end + 2, "content-length:"), *coding = header(head + 1, end + 2, "transfer-encoding:");
    up->start += size;
    line->wants_error_body = init_error;
    line->left = length ? strtol(length, NULL, 10) : 0;
    line->where = coding && !strncasecmp(coding, "chunked", 7) ? CHUNK_SIZE : BODY;
    reply(line, restore ? "200 OK" : known || init_error ? "202 Accepted" : "404 Not Found", restore ? "" : "{}");
    return 1;
}

/* Steps over what there is of a body; 1 if that brought it any further. The answer was written ahead: it is small. */
static int pass_body(struct line *line) {
    struct flow *up = &line->up;
    char *at = up->bytes + up->start;
    size_t size = up->end - up->start, step;
    switch (line->where) {
    case BODY:
    case CHUNK_DATA:
        if (line->wants_error_body && line->where == BODY && size < (size_t)line->left && line->left < BUFFER / 2 &&
            up->end < BUFFER)
            return 0; /* wait for all of it */
        step = size < (size_t)line->left ? size : (size_t)line->left;
        if (line->wants_error_body) queue_frame('i', at, step < BUFFER / 2 ? step : BUFFER / 2);
        up->start += step;
        line->left -= (long)step;
        if (line->left > 0) return step > 0;
        line->where = line->where == BODY ? NONE : CHUNK_END;
        return 1;
    default: { /* a line: of a chunk's size, its end, or of what may follow the last */
        char *eol = memchr(at, '\n', size);
        if (!eol) return 0;
        step = (size_t)(eol + 1 - at);
        if (line->where == CHUNK_SIZE) {
            line->left = strtol(at, NULL, 16);
            line->where = line->left > 0 ? CHUNK_DATA : TRAILER;
        } else if (line->where == CHUNK_END) line->where = CHUNK_SIZE;
        else if (step <= 2) line->where = NONE;
        up->start += step;
        return 1;
    }
    }
}

static void join(struct line *line) {
    line->joined = 1;
    line->held = 0;
    line->host = dial(API_PORT, &line->dialling);
}

static void work_through(struct line *line) {
    while (!line->joined && !line->held && line->up.start < line->up.end) {
        if (line->where == NONE && live) return join(line);
        if (line->where == NONE ? !begin_request(line) : !pass_body(line)) break;
    }
}

static void go_live(void) {
    live = 1;
    quiet = 0;
    for (int i = 0; i < MOST; i++)
        if (lines[i].held) join(&lines[i]);
}

static void practise(void) {
    for (int i = 0; i < MOST; i++)
        if (lines[i].held) {
            lines[i].held = 0;
            work_through(&lines[i]);
        }
}

/* Bytes. */

static void compact(struct flow *flow) {
    if (flow->start == flow->end) flow->start = flow->end = 0;
    else if (flow->start && flow->end == BUFFER) {
        memmove(flow->bytes, flow->bytes + flow->start, flow->end - flow->start);
        flow->end -= flow->start;
        flow->start = 0;
    }
}

static void fill(struct flow *flow, int fd) {
    compact(flow);
    if (flow->ended || flow->end == BUFFER) return;
    ssize_t size = read(fd, flow->bytes + flow->end, BUFFER - flow->end);
    if (size > 0) flow->end += (size_t)size;
    else if (size == 0 || (errno != EAGAIN && errno != EINTR)) flow->ended = 1;
}

static void drain(struct flow *flow, int fd) {
    while (flow->start < flow->end) {
        ssize_t size = send(fd, flow->bytes + flow->start, flow->end - flow->start, MSG_NOSIGNAL);
        if (size < 0) {
            if (errno != EAGAIN && errno != EINTR) flow->start = flow->end, flow->ended = 1;
            break;
        }
        flow->start += (size_t)size;
    }
    if (flow->ended && flow->start == flow->end && !flow->told) {
        flow->told = 1;
        shutdown(fd, SHUT_WR);
    }
}

static void open_line(void) {
    int yes = 1, s = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (s < 0) return;
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    for (int i = 0; i < MOST; i++)
        if (lines[i].runtime < 0) {
            struct line *line = &lines[i];
            char *up = line->up.bytes ? line->up.bytes : malloc(BUFFER), *down = line->down.bytes ? line->down.bytes : malloc(BUFFER);
            *line = (struct line){.runtime = s, .host = -1, .up = {.bytes = up}, .down = {.bytes = down}};
            if (up && down) return;
            line->runtime = -1;
            break;
        }
    close(s);
}

static void close_line(struct line *line) {
    close(line->runtime);
    if (line->host >= 0) close(line->host);
    line->runtime = line->host = -1;
    line->held = 0;
}

static void serve_line(struct line *line, short runtime_says, short host_says) {
    if (line->dialling && host_says) {
        int problem = 0;
        socklen_t size = sizeof problem;
        getsockopt(line->host, SOL_SOCKET, SO_ERROR, &problem, &size);
        if (problem) return close_line(line);
        line->dialling = 0;
    }
    if (runtime_says & (POLLIN | POLLHUP | POLLERR)) fill(&line->up, line->runtime);
    work_through(line);
    if (line->joined && line->host < 0) return close_line(line); /* the runtime will hear that nobody is there */
    if (line->joined && !line->dialling) {
        if (host_says & (POLLIN | POLLHUP | POLLERR)) fill(&line->down, line->host);
        if (!report_dialling) drain(&line->up, line->host); /* what was printed before an answer arrives before it */
    }
    drain(&line->down, line->runtime);
    if (line->up.ended && (!line->joined ? line->down.start == line->down.end : line->up.told && line->down.told))
        close_line(line);
    else if (line->joined && line->down.told) close_line(line);
}

static void hear_output(void) {
    char piece[16384];
    while (said.end - said.start < BUFFER / 2) {
        if (said.end > BUFFER) {
            memmove(said.bytes, said.bytes + said.start, said.end - said.start);
            said.end -= said.start;
            said.start = 0;
        }
        ssize_t size = read(printed, piece, sizeof piece);
        if (size <= 0) {
            if (size == 0) close(printed), printed = -1;
            if (told_number) queue_frame('t', &told_number, sizeof told_number), told_number = 0;
            return;
        }
        if (!quiet) queue_frame('o', piece, (size_t)size);
    }
}

static void tell(short events) {
    if (report >= 0 && report_dialling && events) {
        int problem = 0;
        socklen_t size = sizeof problem;
        getsockopt(report, SOL_SOCKET, SO_ERROR, &problem, &size);
        report_dialling = 0;
        if (problem) close(report), report = -1, said.start = said.end = 0;
    }
    if (report >= 0 && !report_dialling && events & (POLLIN | POLLHUP | POLLERR)) {
        char nothing[16];
        if (read(report, nothing, sizeof nothing) == 0 || events & (POLLHUP | POLLERR)) {
            struct linger at_once = {1, 0}; /* a copy must know of no connection */
            setsockopt(report, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
            close(report);
            report = -1;
            may_be_copied = ready_told;
        }
    }
    if (said.start == said.end) said.start = said.end = 0;
    if (report < 0 && said.start < said.end && (live || !may_be_copied)) report = dial(HOST_PORT, &report_dialling);
    if (report >= 0 && !report_dialling && said.start < said.end) {
        struct flow flow = said;
        flow.ended = 0;
        drain(&flow, report);
        said.start = flow.start;
        said.end = flow.end;
        if (flow.ended) close(report), report = -1;
    }
}

static void reap(void) {
    struct signalfd_siginfo news;
    while (read(signals, &news, sizeof news) == sizeof news) {
    }
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (pid != runtime) continue;
        runtime = 0;
        quiet = 0;
        write_file(GROUP "/cgroup.kill", "1");
        if (printed >= 0) hear_output();
        struct {
            int32_t code, signal;
            uint32_t out_of_memory, unused;
            uint64_t most_memory;
        } end = {WIFEXITED(status) ? WEXITSTATUS(status) : 0, WIFSIGNALED(status) ? WTERMSIG(status) : 0,
                 read_number(GROUP "/memory.events", "oom_kill ") > 0, 0, read_number(GROUP "/memory.peak", NULL)};
        queue_frame('x', &end, sizeof end);
    }
}

static void settle_parking(void) {
    if (!parking || !live) return;
    int asked = 0;
    for (int i = 0; i < MOST; i++) {
        if (lines[i].runtime < 0 || !lines[i].joined) continue;
        if (lines[i].dialling || lines[i].up.start < lines[i].up.end) return; /* its request is on its way to the host */
        asked = 1;
    }
    if (!asked) return;
    freeze(1);
    parking = 0;
    parked = 1;
    answer('P', done_number);
}

static void serve(void) {
    struct pollfd polled[5 + 2 * MOST];
    for (;;) {
        polled[0] = (struct pollfd){wake, POLLIN, 0};
        polled[1] = (struct pollfd){signals, POLLIN, 0};
        polled[2] = (struct pollfd){said.end - said.start < BUFFER / 2 ? printed : -1, POLLIN, 0};
        polled[3] = (struct pollfd){report, (short)(POLLIN | (report_dialling || said.start < said.end ? POLLOUT : 0)), 0};
        polled[4] = (struct pollfd){listener, POLLIN, 0};
        for (int i = 0; i < MOST; i++) {
            struct line *line = &lines[i];
            int reads = !line->up.ended && !line->held && line->up.end - line->up.start < BUFFER;
            int hears = line->joined && !line->dialling && !line->down.ended && line->down.end - line->down.start < BUFFER;
            int sends = line->dialling || (line->joined && !report_dialling && line->up.start < line->up.end);
            polled[5 + 2 * i] = (struct pollfd){
                line->runtime, (short)((reads ? POLLIN : 0) | (line->down.start < line->down.end ? POLLOUT : 0)), 0};
            polled[6 + 2 * i] = (struct pollfd){line->host, (short)((hears ? POLLIN : 0) | (sends ? POLLOUT : 0)), 0};
            if (line->runtime < 0) polled[5 + 2 * i].fd = polled[6 + 2 * i].fd = -1;
        }
        if (poll(polled, 5 + 2 * MOST, -1) < 0 && errno != EINTR) trouble("poll: %s", strerror(errno));
        if (polled[0].revents) hear();
        if (polled[2].revents && printed >= 0) hear_output();
        if (polled[1].revents) reap();
        tell(polled[3].revents);
        if (polled[4].revents) open_line();
        for (int i = 0; i < MOST; i++) {
            struct line *line = &lines[i];
            short here = polled[5 + 2 * i].revents, there = polled[6 + 2 * i].revents;
            if (line->runtime >= 0 && (here || there || (line->joined && !line->dialling))) serve_line(line, here, there);
        }
        tell(0);
        settle_parking();
    }
}

int main(void) {
    said.bytes = malloc(2 * BUFFER);
    for (int i = 0; i < MOST; i++) lines[i].runtime = lines[i].host = -1;
    mount("dev", "/dev", "devtmpfs", MS_NOSUID, NULL);
    int console = open("/dev/console", O_RDWR);
    for (int i = 0; console >= 0 && i < 3; i++) dup2(console, i);
    if (console > 2) close(console);
    signal(SIGPIPE, SIG_IGN);
    sigset_t handled;
    sigemptyset(&handled);
    sigaddset(&handled, SIGCHLD);
    sigprocmask(SIG_BLOCK, &handled, NULL);
    signals = signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK);
    load_modules();
    read_config();
    set_network_up();
    open_sockets();
    lay_out_root();
    make_group();
    start_runtime();
    serve();
}
