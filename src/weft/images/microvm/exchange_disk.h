/* The disk "exchange", as init.c describes it: its header, what to run, and the ring of what was printed. */
#pragma once
#include "machine.h"

enum { SECTOR = 512, HEAD = 4096, CONFIG = 1048576, PIECE = 8192, BATCH = 65536, MOST = 64 };
enum { BOOTING = 1, RUNNING = 2, ENDED = 3 };                        /* states */
enum { SIGNALLED = 1, OUT_OF_MEMORY = 2, UNSTARTED = 4, AGAIN = 8, NO_PROGRAM = 16 }; /* how it ended; AGAIN: the machine booted twice */
#define KEPT "/kept" /* what commands that come later need, outside of the container's root */

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

static struct {
    int fd;
    uint64_t size;                       /* of the ring */
    union { struct header head; unsigned char sector[SECTOR]; } *top;
    unsigned char *batch, last[SECTOR]; /* the sector that the ring's end lies in */
} exchange = {.fd = -1};

static int open_exchange(void) {
    char device[64];
    uint64_t bytes = 0;
    if (!find_disk("exchange", device, sizeof device)) return log_failure("disk", "exchange"), 0;
    exchange.fd = open(device, O_RDWR | O_DIRECT | O_CLOEXEC);
    if (exchange.fd < 0 || ioctl(exchange.fd, BLKGETSIZE64, &bytes) != 0 || bytes < HEAD + CONFIG + 65536) return log_failure("exchange", device), 0;
    exchange.size = (bytes - HEAD - CONFIG) / SECTOR * SECTOR;
    if (posix_memalign((void **)&exchange.top, 4096, SECTOR) || posix_memalign((void **)&exchange.batch, 4096, BATCH + SECTOR)) return 0;
    if (pread(exchange.fd, exchange.top, SECTOR, 0) != SECTOR) return log_failure("read", device), 0;
    struct header *head = &exchange.top->head;
    if (memcmp(head->magic, "weftbox1", 8) != 0 || head->end - head->first > exchange.size)
        memset(exchange.top, 0, SECTOR), memcpy(head->magic, "weftbox1", 8);
    uint64_t at = head->end % exchange.size / SECTOR * SECTOR;
    if (pread(exchange.fd, exchange.batch, SECTOR, HEAD + CONFIG + at) == SECTOR) memcpy(exchange.last, exchange.batch, SECTOR);
    return 1;
}

static void write_head(void) {
    if (pwrite(exchange.fd, exchange.top, SECTOR, 0) != SECTOR) log_failure("write", "exchange");
}

static void append(const char *data, size_t length) {
    struct header *head = &exchange.top->head;
    while (length) {
        uint64_t at = head->end % exchange.size;
        size_t before = at % SECTOR, fits = BATCH - before, whole;
        if (fits > length) fits = length;
        if (fits > exchange.size - at) fits = exchange.size - at;
        whole = (before + fits + SECTOR - 1) / SECTOR * SECTOR;
        memset(exchange.batch + whole - SECTOR, 0, SECTOR);
        memcpy(exchange.batch, exchange.last, before);
        memcpy(exchange.batch + before, data, fits);
        if (pwrite(exchange.fd, exchange.batch, whole, HEAD + CONFIG + at - before) != (ssize_t)whole) log_failure("write", "exchange");
        head->end += fits;
        if (head->end - head->first > exchange.size - SECTOR) head->first = head->end - (exchange.size - SECTOR);
        memcpy(exchange.last, exchange.batch + whole - SECTOR, SECTOR);
        data += fits, length -= fits;
    }
    write_head();
}

/* Output of one of the container's streams, as lines of the ring. */
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
        if (pread(exchange.fd, data + have, BATCH, HEAD + have) != BATCH) return log_failure("read", "config"), 0;
        for (size_t i = have ? have : 1; i < have + BATCH && !length; i++)
            if (!data[i] && !data[i - 1]) length = i + 1;
    }
    if (!length) return 0;
    write_file(KEPT "/config", data, length); /* as it is: reading takes it apart */
    return read_config(data, length) && config.argc;
}
