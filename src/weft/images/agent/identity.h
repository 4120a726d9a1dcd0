/* What a machine that goes on from copied memory gets before it reaches the network: randomness and a clock; and if it becomes
 * another machine also a name, a machine id, addresses and, by the image's own script, what else must not be anybody's twin.
 *
 * The message: 32 bytes of seed, u64 nanoseconds since 1970, host name NUL, machine id NUL, and OLD MAC, NEW MAC for each NIC, each
 * with a NUL. Without a name and an id it stays who it is. It may come twice.
 */
#pragma once
#include "session.h"

#include <linux/random.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sys/socket.h>

enum { SEED = 32, RENEW_MS = 60000 };
enum { NO_RANDOMNESS = 1, NO_CLOCK = 2, NO_NAME = 4, NO_MACHINE_ID = 8, NO_ADDRESS = 16, NO_SCRIPT = 32, NO_SENSE = 64 };

static const char *renewal_script = "/usr/local/lib/weft/renewed";
static struct {
    uint32_t asker;
    uint32_t failed;
    pid_t script; /* 0: none runs */
    long since;
} renewal;

static int stir(const unsigned char *seed) {
    struct {
        struct rand_pool_info info;
        unsigned char bytes[SEED];
    } pool = {.info = {.entropy_count = SEED * 8, .buf_size = SEED}};
    memcpy(pool.info.buf, seed, SEED);
    int fd = open("/dev/random", O_RDWR | O_CLOEXEC);
    int fine = fd >= 0 && ioctl(fd, RNDADDENTROPY, &pool) == 0 && ioctl(fd, RNDRESEEDCRNG, 0) == 0;
    if (fd >= 0) close(fd);
    explicit_bzero(&pool, sizeof pool);
    return fine;
}

static int set_clock(const unsigned char *nanoseconds_le) {
    uint64_t nanoseconds;
    memcpy(&nanoseconds, nanoseconds_le, 8);
    struct timespec now = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
    return clock_settime(CLOCK_REALTIME, &now) == 0;
}

static int parse_mac(const char *text, unsigned char *mac) {
    return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", mac, mac + 1, mac + 2, mac + 3, mac + 4, mac + 5) == 6;
}

/* Each NIC that has the old one; one that has the new one already needs nothing. */
static int change_mac(const char *old, const char *new) {
    unsigned char wanted[2][6];
    int found = 0, line = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    DIR *links = opendir("/sys/class/net");
    if (!parse_mac(old, wanted[0]) || !parse_mac(new, wanted[1])) found = -1;
    for (struct dirent *entry; links && found == 0 && (entry = readdir(links));) {
        struct ifreq request = {.ifr_flags = 0};
        snprintf(request.ifr_name, sizeof request.ifr_name, "%.15s", entry->d_name);
        if (*entry->d_name == '.' || ioctl(line, SIOCGIFHWADDR, &request) != 0) continue;
        if (request.ifr_hwaddr.sa_family != ARPHRD_ETHER) continue;
        if (!memcmp(request.ifr_hwaddr.sa_data, wanted[1], 6)) found = 1;
        else if (!memcmp(request.ifr_hwaddr.sa_data, wanted[0], 6)) {
            memcpy(request.ifr_hwaddr.sa_data, wanted[1], 6);
            found = ioctl(line, SIOCSIFHWADDR, &request) == 0 ? 1 : -1;
        }
    }
    if (links) closedir(links);
    if (line >= 0) close(line);
    return found == 1;
}

static void answer_renewal(void) {
    if (renewal.asker) send_number('I', 0, renewal.asker, renewal.failed);
    renewal.asker = 0, renewal.script = 0;
}

static void run_renewal_script(void) {
    renewal.since = milliseconds();
    renewal.script = fork();
    if (renewal.script < 0) renewal.failed |= NO_SCRIPT, renewal.script = 0;
    if (renewal.script == 0 && !(renewal.failed & NO_SCRIPT)) {
        allow_signals();
        setsid();
        int nowhere = open("/dev/null", O_RDWR);
        for (int i = 0; nowhere >= 0 && i < 3; i++) dup2(nowhere, i);
        execl(renewal_script, renewal_script, NULL);
        execl("/bin/sh", "sh", renewal_script, NULL); /* it may lack the mark of a program */
        _exit(127);
    }
}

static void renew(uint32_t id, const unsigned char *payload, size_t length) {
    const char *words = (const char *)payload + SEED + 8, *end = (const char *)payload + length;
    if (renewal.script) { /* the same again: its host has lost the answer */
        renewal.asker = id;
        return;
    }
    renewal.asker = id, renewal.failed = 0;
    if (length < SEED + 8 + 2 || end[-1]) {
        renewal.failed = NO_SENSE;
        return answer_renewal();
    }
    if (!stir(payload)) renewal.failed |= NO_RANDOMNESS;
    if (!set_clock(payload + SEED)) renewal.failed |= NO_CLOCK;
    const char *name = words, *machine_id = name + strlen(name) + 1;
    if (!*name || machine_id >= end) return answer_renewal();
    const char *old = machine_id + strlen(machine_id) + 1;
    char line[80];
    snprintf(line, sizeof line, "%.64s\n", name);
    if (sethostname(name, strlen(name)) != 0 || !write_file("/etc/hostname", line, strlen(line))) renewal.failed |= NO_NAME;
    if (!write_machine_id(machine_id)) renewal.failed |= NO_MACHINE_ID;
    while (old < end) {
        const char *new = old + strlen(old) + 1;
        if (new >= end || !change_mac(old, new)) renewal.failed |= NO_ADDRESS;
        if (new >= end) break;
        old = new + strlen(new) + 1;
    }
    if (access(renewal_script, R_OK) == 0) run_renewal_script();
    if (!renewal.script) answer_renewal();
}

/* A child has ended; was it the script? */
static void take_renewal_end(pid_t pid, int status) {
    if (!renewal.script || pid != renewal.script) return;
    if (status != 0) renewal.failed |= NO_SCRIPT;
    answer_renewal();
}

static void end_late_renewal(void) {
    if (renewal.script && milliseconds() - renewal.since > RENEW_MS) kill(-renewal.script, SIGKILL);
}
