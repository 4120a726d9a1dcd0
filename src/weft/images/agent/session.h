/* Frames on their way to the host, and sessions: what each holds until the host has it, and who of them waits for another host. */
#pragma once
#include "../machine.h"

enum { VERSION = 4, HEADER = 8, PAYLOAD = 16384, WINDOW = 262144, REQUEST = 2097152, SESSIONS = 256, END_MARK = 0xa5 };
enum { SEND_ENOUGH = 131072 }; /* so much waits to be sent: read no more output for now */
enum { PATIENCE = 1000 };      /* milliseconds a host may be away before its sessions end, or wait for another one */
enum { KEEP = 60000 };         /* milliseconds a session with a name waits for a host */
enum { NAME = 16, BURIED = 256 };
enum { NETWORK_WAIT_MS = 4000 };
static const char MAGIC[8] = {'w', 'e', 'f', 't', 'g', 'a', '\r', '\n'};

/* What a command printed and the host hasn't acknowledged: bytes from `first` to `end`, of which `sent` were sent. */
struct ring {
    unsigned char *bytes; /* WINDOW of them, or NULL while there are none */
    uint64_t first, sent, end;
};

struct session {
    uint32_t id; /* the host's number for it; 0: no host has it */
    int named, exit_sent;
    unsigned char name[NAME];
    long left_at;   /* milliseconds; when its host was lost */
    struct ring output[3];
    pid_t pid;
    int fd[3];      /* ours: stdin to write, stdout and stderr to read; -1 closed */
    long left[3];   /* -1 while the command runs, then what its pipe still held */
    int terminal, ended, status;
    uint32_t size; /* of its terminal: rows in the lower half, columns in the upper one; may come before the command */
    long ended_at;  /* milliseconds; a terminal hands its last output over a little late */
    char *request;  /* until it starts; afterwards the stdin that waits */
    size_t start, length; /* the stdin that waits is request[start … start + length] */
    int stdin_ends, stdin_ended;
    uint64_t received, taken; /* of stdin, since its beginning */
    uint32_t owed;  /* stdin bytes taken that the host has no credit for yet */
};

static struct session *sessions[SESSIONS];
static unsigned char buried[BURIED][NAME]; /* names of sessions that are over */
static size_t burials;
static char run_id[40]; /* tells this run of the agent from any other */
static unsigned char greeted[16]; /* the last nonce */
static int port = -1, is_port, synced;
static long began; /* milliseconds */
static unsigned char in[2 * (HEADER + PAYLOAD + 1)], *out;
static size_t in_length, out_start, out_length, out_size; /* what waits is out[out_start … out_start + out_length] */

static void close_fd(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static void *reserve(size_t more) {
    if (out_start + out_length + more > out_size) {
        if (out_start) memmove(out, out + out_start, out_length);
        out_start = 0;
    }
    if (out_length + more > out_size) {
        out_size = (out_length + more) * 2;
        out = realloc(out, out_size);
        if (!out) abort(); /* PID 1 starts the agent again */
    }
    return out + out_start + out_length;
}

static void send_frame(char type, int channel, uint32_t id, const void *payload, size_t length) {
    unsigned char *frame = reserve(HEADER + length + 1);
    uint16_t size = length;
    frame[0] = type, frame[1] = channel;
    memcpy(frame + 2, &size, 2);
    memcpy(frame + 4, &id, 4);
    if (length) memcpy(frame + HEADER, payload, length);
    frame[HEADER + length] = END_MARK;
    out_length += HEADER + length + 1;
}

static void send_number(char type, int channel, uint32_t id, uint32_t number) { send_frame(type, channel, id, &number, 4); }

static struct session *find_session(uint32_t id) {
    for (int i = 0; id && i < SESSIONS; i++)
        if (sessions[i] && sessions[i]->id == id) return sessions[i];
    return NULL;
}

static struct session *find_named(const unsigned char *name) {
    for (int i = 0; i < SESSIONS; i++)
        if (sessions[i] && sessions[i]->named && !memcmp(sessions[i]->name, name, NAME)) return sessions[i];
    return NULL;
}

static int is_buried(const unsigned char *name) {
    for (size_t i = 0; i < BURIED && i < burials; i++)
        if (!memcmp(buried[i], name, NAME)) return 1;
    return 0;
}

static struct session *new_session(uint32_t id) {
    for (int i = 0; i < SESSIONS; i++)
        if (!sessions[i]) {
            struct session *s = sessions[i] = calloc(1, sizeof *s);
            if (!s) return NULL;
            *s = (struct session){.id = id, .fd = {-1, -1, -1}, .left = {-1, -1, -1}};
            return s;
        }
    return NULL;
}

static void free_session(struct session *s) {
    for (int i = 0; i < SESSIONS; i++)
        if (sessions[i] == s) sessions[i] = NULL;
    for (int channel = 0; channel < 3; channel++) close_fd(&s->fd[channel]), free(s->output[channel].bytes);
    if (s->named) memcpy(buried[burials++ % BURIED], s->name, NAME);
    free(s->request);
    free(s);
}

/* Keeps output until the host has it; it fits. */
static void keep_output(struct session *s, int channel, const unsigned char *data, size_t length) {
    struct ring *r = &s->output[channel];
    if (!r->bytes && !(r->bytes = malloc(WINDOW))) abort(); /* PID 1 starts the agent again */
    size_t at = r->end % WINDOW, head = length < WINDOW - at ? length : WINDOW - at;
    memcpy(r->bytes + at, data, head);
    memcpy(r->bytes, data + head, length - head);
    r->end += length;
}

static void send_output(struct session *s, int channel) {
    struct ring *r = &s->output[channel];
    while (s->id && r->sent < r->end && out_length < SEND_ENOUGH) {
        size_t at = r->sent % WINDOW, length = r->end - r->sent;
        if (length > WINDOW - at) length = WINDOW - at;
        if (length > PAYLOAD) length = PAYLOAD;
        send_frame('D', channel, s->id, r->bytes + at, length);
        r->sent += length;
    }
}

/* The host has everything before `position`. Returns whether that can be. */
static int drop_output(struct session *s, int channel, uint64_t position) {
    struct ring *r = &s->output[channel];
    if (position < r->first || position > r->end) return 0;
    r->first = position;
    if (r->sent < position) r->sent = position;
    if (r->first == r->end) free(r->bytes), r->bytes = NULL;
    return 1;
}

static void hang_up(struct session *s) {
    if (s->pid > 0 && !s->ended) {
        kill(-s->pid, SIGHUP);
        kill(-s->pid, SIGCONT);
    }
    free_session(s);
}

static void let_go(struct session *s) { s->id = 0, s->exit_sent = 0, s->left_at = milliseconds(); }

/* The host is lost: what has a name waits for another one, as far as its command was begun; the rest ends. */
static void part_with_host(int keeps_named) {
    for (int i = 0; i < SESSIONS; i++) {
        struct session *s = sessions[i];
        if (!s) continue;
        if (!(s->pid || s->ended)) s->named = 0; /* its command has never begun, and may yet */
        if (!keeps_named || !s->named) hang_up(s);
        else if (s->id) let_go(s);
    }
}

static void end_forgotten(void) {
    for (int i = 0; i < SESSIONS; i++)
        if (sessions[i] && !sessions[i]->id && milliseconds() - sessions[i]->left_at > KEEP) hang_up(sessions[i]);
}
