/* What all parts of this machine's PID 1 share: its configuration, its state, and frames for the host. */
#pragma once
#include "../machine.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <grp.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>

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
    int ended, end_sent;
};

struct line { /* of the runtime to us, and on to the host */
    int runtime, host, joined, dialling, where, held;
    long left;
    struct flow up, down;
    int wants_error_body;
};

static struct line lines[MOST];
static struct flow outgoing; /* frames on their way to the host */
static int listener = -1, wake = -1, printed = -1, report = -1, report_dialling, signals = -1;
static int live, parked, parking, quiet, frozen, calls_left, practice, ready_reported, may_be_copied;
static uint64_t done_number, held_number, told_number; /* told_number: of a T that isn't answered yet */
static pid_t runtime;
static char *config, *argv[WORDS], *env[WORDS], *workdir = "/";
static const char *resolver; /* what it is to find in /etc/resolv.conf */
static char arn[256] = "arn:weft:lambda:weft:default:function:function";
static unsigned uid, gid, timeout_ms = 30000, warm_calls, has_code, mtu; /* mtu: of the network that it is led into; else 0 */
static uint64_t memory_bytes, tmp_bytes = 64 << 20, pids = 256;

static void queue_frame(char kind, const void *content, size_t size) {
    if (size > BUFFER - 5 || outgoing.end + 5 + size > 2 * BUFFER) return;
    uint32_t length = (uint32_t)size;
    outgoing.bytes[outgoing.end] = kind;
    memcpy(outgoing.bytes + outgoing.end + 1, &length, 4);
    memcpy(outgoing.bytes + outgoing.end + 5, content, size);
    outgoing.end += 5 + size;
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

static int write_text(const char *path, const char *text) { return write_file(path, text, strlen(text)); }
