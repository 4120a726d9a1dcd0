/* Coming up: what the function is (/config), the way to the host, the root that it sees, its group, and its process. */
#include "state.h"

static const char *const device_modules[] = {"failover", "net_failover", "virtio_net", "virtio_blk", NULL};

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
        if (!write_text(NOTES "/resolv.conf", resolver)) trouble("resolv.conf: %s", strerror(errno));
        must_mount(NOTES "/resolv.conf", ROOT "/etc/resolv.conf", "", MS_BIND, "");
    }
    int fd = open(NOTES "/practises", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || fchown(fd, uid, gid) != 0) trouble(NOTES ": %s", strerror(errno));
    if (fd >= 0) close(fd);
}

static void make_group(void) {
    char text[32];
    must_mount("groups", "/groups", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
    write_text("/groups/cgroup.subtree_control", "+memory +pids");
    if (mkdir(GROUP, 0755) != 0) trouble("group: %s", strerror(errno));
    snprintf(text, sizeof text, "%llu", (unsigned long long)memory_bytes);
    if (memory_bytes && !write_text(GROUP "/memory.max", text)) trouble("memory.max: %s", strerror(errno));
    snprintf(text, sizeof text, "%llu", (unsigned long long)pids);
    if (!write_text(GROUP "/pids.max", text)) trouble("pids.max: %s", strerror(errno));
    write_text(GROUP "/memory.oom.group", "1"); /* a function that has lost a part is of no use */
}

static void start_runtime(void) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return trouble("pipe: %s", strerror(errno));
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    printed = ends[0];
    runtime = fork();
    if (runtime == 0) {
        allow_signals();
        setsid();
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        write_text(GROUP "/cgroup.procs", "0");
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
