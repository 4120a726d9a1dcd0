/* PID 1 of a machine that is copied: it brings a function's runtime up, holds the runtime's first request for an invocation,
 * and is copied while it waits. In a copy nothing of the function runs before the copy has a clock, randomness and a name of
 * its own. From then on it only carries bytes between the runtime and the host's Runtime API.
 *
 * The runtime calls 127.0.0.1:9001. While the machine comes up, what it asks is answered in here. The host is 169.254.100.1:
 *   TCP 9001  the Runtime API, from the copies
 *   TCP 9000  frames to the host, u8 kind, u32 length (little endian), content: o what the function printed, i the body of
 *             init/error, x how the runtime ended (i32 code, i32 signal, u32 out of memory, u64 most memory),
 *             r ready to be copied, e what went wrong in here, in words,
 *             t all that was printed before datagram T (u64 its number) is sent
 *   UDP 9000  datagrams, u8 kind, u64 number:  to the guest    W woken: ask    F fresh (struct fresh)    S stand still
 *                                                                M how much memory    T tell what was printed
 *                                              from the guest  Q asks for F    D done, the function runs P stands still
 *                                                                M that, as P says it too
 * What the function is: /config in the initial RAM file system, records KEY VALUE NUL.
 */
#include "requests.h"
#include "setup.h"

/* The host. */

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

/* Standing still, and getting fresh state. */

static void freeze(int still) {
    if (still == frozen) return;
    write_text(GROUP "/cgroup.freeze", still ? "1" : "0");
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

static void hear_output(void);

static void take_fresh(const struct fresh *fresh) {
    char name[65] = "";
    set_clock(fresh->now_ns);
    credit(fresh->seed);
    memcpy(name, fresh->name, 64);
    if (sethostname(name, strlen(name)) != 0) trouble("hostname: %s", strerror(errno));
    write_text(NOTES "/resumed", "");
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
        else if (fresh.kind == 'T') told_number = fresh.number, hear_output();
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
    if (flow->ended && flow->start == flow->end && !flow->end_sent) {
        flow->end_sent = 1;
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
    if (line->up.ended && (!line->joined ? line->down.start == line->down.end : line->up.end_sent && line->down.end_sent))
        close_line(line);
    else if (line->joined && line->down.end_sent) close_line(line);
}

static void hear_output(void) {
    char piece[16384];
    while (outgoing.end - outgoing.start < BUFFER / 2) {
        if (outgoing.end > BUFFER) {
            memmove(outgoing.bytes, outgoing.bytes + outgoing.start, outgoing.end - outgoing.start);
            outgoing.end -= outgoing.start;
            outgoing.start = 0;
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
        if (problem) close(report), report = -1, outgoing.start = outgoing.end = 0;
    }
    if (report >= 0 && !report_dialling && events & (POLLIN | POLLHUP | POLLERR)) {
        char nothing[16];
        if (read(report, nothing, sizeof nothing) == 0 || events & (POLLHUP | POLLERR)) {
            struct linger at_once = {1, 0}; /* a copy must know of no connection */
            setsockopt(report, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
            close(report);
            report = -1;
            may_be_copied = ready_reported;
        }
    }
    if (outgoing.start == outgoing.end) outgoing.start = outgoing.end = 0;
    if (report < 0 && outgoing.start < outgoing.end && (live || !may_be_copied)) report = dial(HOST_PORT, &report_dialling);
    if (report >= 0 && !report_dialling && outgoing.start < outgoing.end) {
        struct flow flow = outgoing;
        flow.ended = 0;
        drain(&flow, report);
        outgoing.start = flow.start;
        outgoing.end = flow.end;
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
        write_text(GROUP "/cgroup.kill", "1");
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
        polled[2] = (struct pollfd){outgoing.end - outgoing.start < BUFFER / 2 ? printed : -1, POLLIN, 0};
        polled[3] = (struct pollfd){report, (short)(POLLIN | (report_dialling || outgoing.start < outgoing.end ? POLLOUT : 0)), 0};
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
    outgoing.bytes = malloc(2 * BUFFER);
    for (int i = 0; i < MOST; i++) lines[i].runtime = lines[i].host = -1;
    static const int handled_signals[] = {SIGCHLD, 0};
    mount_kernel_folders();
    signal(SIGPIPE, SIG_IGN);
    sigset_t handled = hold_signals(handled_signals);
    signals = signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK);
    load_virtio();
    load_modules(device_modules);
    read_config();
    set_network_up();
    open_sockets();
    lay_out_root();
    make_group();
    start_runtime();
    serve();
}
