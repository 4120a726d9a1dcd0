/* The runtime's requests, answered in here for as long as the host's Runtime API isn't asked. */
#include "state.h"

static void go_live(void);
static void freeze(int still);
static int dial(int port, int *dialling);

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
    if (ready_reported) return go_live(); /* a copy that has practised */
    freeze(1);
    quiet = 0;
    ready_reported = 1;
    queue_frame('r', "", 0);
}

/* A request for an invocation is whole in the buffer and stays there while it is held. */
static void next_wanted(struct line *line, size_t head) {
    static int begun;
    if (!begun && !ready_reported) { /* how many calls come first: the handler's if the function has some, then practice */
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
        if (up->end - up->start == BUFFER) line->up.ended = line->up.end_sent = 1, up->start = up->end;
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
