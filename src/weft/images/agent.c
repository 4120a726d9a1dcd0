/* weft's guest agent: commands for the host over one framed byte stream, many at once.
 *
 * The stream is a virtio-serial port (found by its name), or for tests any path or `fd:N`. Its other end may vanish and
 * come back at any moment, in the middle of a frame, so trust begins with HELLO: the host sends enough zeros to end any
 * frame, then HELLO with a random nonce; the agent forgets what it wanted to send and answers HELLO with the same nonce.
 * Before that the host ignores what arrives. A zero where a frame begins is skipped. A frame whose last byte isn't
 * END_MARK was cut: it is not obeyed, and everything is ignored until the next HELLO.
 *
 * A session with a name (NAME) outlives its host: the guest may have moved to another one, or the host's agent may have
 * been killed. Whoever comes next says the name and how much of the output has arrived, gets the rest, and hears how
 * much of the input is here. Its exit is kept too, until HANG_UP says that it was heard. Nobody says the name for
 * KEEP: it is hung up. Sessions without a name end with the host that began them. A host that knows of names says HELLO
 * with channel 1, and once more with channel 0 for an agent that doesn't; the second one is passed over here.
 *
 * A frame: type u8, channel u8, length u16, session u32 (little endian), payload of at most 16 KiB, END_MARK.
 *   'H' HELLO    to the guest: magic, nonce. To the host: magic, nonce, version u8, boot id NUL, hostname NUL, and NUL
 *                after what tells this run of the agent from any other
 *   'B' BOOTED   to the host: an agent has just started (its predecessor's sessions are gone); answer with HELLO
 *   'N' NAME     to the guest: 16 bytes, then u64 each of stdout and stderr that have arrived; channel 0: begin a session,
 *                1: go on with one or begin it if it never was, 2: go on with one. To the host: channel 0 it is new, 1 it
 *                goes on, 2 it is gone; u64 each of stdin that has come here, and that the command has taken; u8 its end
 *   'A' ARGUMENT to the guest: more of the request: folder, count, count × argument, then NAME=VALUE; each ends with NUL
 *   'X' EXECUTE  to the guest: start the request; channel 1 asks for a terminal
 *   'D' DATA     channel 0 stdin, 1 stdout, 2 stderr
 *   'C' CLOSE    to the guest: stdin has ended
 *   'W' WINDOW   u32: so many bytes have arrived and so many more may be sent on that channel; it begins with WINDOW
 *   'K' HANG_UP  to the guest: SIGHUP to the command's process group, and forget the session; channel 1: its host lets go
 *                of it, another one may come
 *   'R' RESIZE   to the guest: rows u16, columns u16 of the session's terminal
 *   'Q' EXITED   to the host: channel 0: exit code u32; channel 1: signal u32. The session's last frame
 *   'P' PROCESS  to the host: how the one process is that this machine is there for, after HELLO and when it changes: channel 0
 *                it runs, 1 it doesn't; u32 each of how often it has ended by itself and of its last exit code (128 + signal).
 *                PID 1 writes it into a file, RUNS ENDS CODE, and signals; that file is gone when the host has been told
 *   'O' POWER    to the guest: u8 1 power off, 2 reboot
 *   'T' TIME     to the guest: nanoseconds u64 since 1970: set the clock (it stood still while the guest was suspended)
 *
 * A session ends with its command: what the pipes held at that moment is still sent, but children that live on in the
 * background and keep them open are not waited for.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { VERSION = 2, HEADER = 8, PAYLOAD = 16384, WINDOW = 262144, REQUEST = 2097152, SESSIONS = 256, END_MARK = 0xa5 };
enum { SEND_ENOUGH = 131072 }; /* so much waits to be sent: read no more output for now */
enum { PATIENCE = 1000 };      /* milliseconds a host may be away before its sessions end, or wait for another one */
enum { KEEP = 60000 };         /* milliseconds a session with a name waits for a host */
enum { NAME = 16, BURIED = 256 };
enum { NETWORK_WAIT_MS = 4000 };
static const char MAGIC[8] = {'w', 'e', 'f', 't', 'g', 'a', '\r', '\n'};

/* What a command printed and the host hasn't said to have: bytes from `first` to `end`, of which `sent` were sent. */
struct ring {
    unsigned char *bytes; /* WINDOW of them, or NULL while there are none */
    uint64_t first, sent, end;
};

struct session {
    uint32_t id; /* the host's number for it; 0: no host has it */
    int named, told;
    unsigned char name[NAME];
    long left_at;   /* milliseconds; when its host was lost */
    struct ring output[3];
    pid_t pid;
    int fd[3];      /* ours: stdin to write, stdout and stderr to read; -1 closed */
    long left[3];   /* -1 while the command runs, then what its pipe still held */
    int terminal, ended, status;
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
static const char *process_file = "/run/weft/process";
static unsigned process_runs, process_said[2]; /* ends, code */
static int process_known, process_untold;
static int port = -1, is_port, synced;
static long began; /* milliseconds */
static unsigned char in[2 * (HEADER + PAYLOAD + 1)], *out;
static size_t in_length, out_start, out_length, out_size; /* what waits is out[out_start … out_start + out_length] */

static long milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

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

/* Keeps output until the host has it; there is room for it. */
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

static void let_go(struct session *s) { s->id = 0, s->told = 0, s->left_at = milliseconds(); }

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

static int read_line(const char *path, char *line, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, line, size - 1);
    if (fd >= 0) close(fd);
    return n > 0 ? n : 0;
}

static void tell_process(void) {
    if (process_known && synced) send_frame('P', !process_runs, 0, process_said, sizeof process_said);
}

static const char *taken_file(void) {
    static char path[256];
    snprintf(path, sizeof path, "%s.taken", process_file);
    return path;
}

/* Under another name it isn't written over between here and its end. */
static void read_process(void) {
    char line[64] = "";
    unsigned runs, ends, code;
    if (rename(process_file, taken_file()) != 0 || !read_line(taken_file(), line, sizeof line)) return;
    if (sscanf(line, "%u %u %u", &runs, &ends, &code) != 3) return;
    process_runs = runs, process_said[0] = ends, process_said[1] = code;
    process_known = process_untold = 1;
    tell_process();
}

static void answer_hello(const unsigned char *nonce, int knows_names) {
    char payload[8 + 16 + 1 + 40 + 65 + 40 + 3] = {0}, *at = payload + 25;
    if (!knows_names && synced && !memcmp(nonce, greeted, 16)) return; /* it is for agents that know no names */
    memcpy(greeted, nonce, 16);
    memcpy(payload, MAGIC, 8);
    memcpy(payload + 8, nonce, 16);
    payload[24] = VERSION;
    at += read_line("/proc/sys/kernel/random/boot_id", at, 37) + 1;
    gethostname(at, 65);
    at += strlen(at) + 1;
    strcpy(at, run_id);
    part_with_host(knows_names);
    out_start = out_length = 0;
    synced = 1;
    send_frame('H', 0, 0, payload, at + strlen(at) + 1 - payload);
    tell_process();
}

/* Begins a session with a name, or gives one that has lost its host to this host, which calls it `id`. */
static void name_session(int how, uint32_t id, const unsigned char *payload) {
    unsigned char answer[17] = {0};
    uint64_t had[3] = {0};
    memcpy(had + 1, payload + NAME, 16);
    struct session *s = find_named(payload);
    int goes_on = s && how != 0;
    for (int channel = 1; goes_on && channel < 3; channel++) {
        goes_on = drop_output(s, channel, had[channel]);
        if (goes_on) s->output[channel].sent = had[channel];
    }
    if (goes_on) {
        s->id = id, s->told = 0, s->owed = 0;
        memcpy(answer, &s->received, 8);
        memcpy(answer + 8, &s->taken, 8);
        answer[16] = s->stdin_ended;
        send_frame('N', 1, id, answer, sizeof answer);
    } else if (s || how == 2 || had[1] || had[2] || is_buried(payload) || !(s = new_session(id)))
        send_frame('N', 2, id, answer, sizeof answer);
    else {
        s->named = 1;
        memcpy(s->name, payload, NAME);
        send_frame('N', 0, id, answer, sizeof answer);
    }
}

/* The agent answers before DHCP has, because readiness is about the machine. Whoever types a command right after the
 * create expects a network all the same: the first commands of a boot wait for it, or until it has had its chance. */
static void await_network(void) {
    while (is_port && milliseconds() < began + NETWORK_WAIT_MS && access("/run/network-tried", F_OK) != 0) usleep(20000);
}

static void run_command(char **argv, char **env, const char *folder) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC); /* the agent is spared, its commands are not */
    if (score >= 0 && write(score, "0", 1) < 0) dprintf(2, "weft-agent: oom_score_adj: %s\n", strerror(errno));
    for (; *env; env++) putenv(*env);
    if (*folder ? chdir(folder) != 0 : chdir("/root") != 0 && chdir("/") != 0) {
        dprintf(2, "weft-agent: folder %s: %s\n", folder, strerror(errno));
        _exit(126);
    }
    await_network();
    execvp(argv[0], argv);
    dprintf(2, "weft-agent: %s: %s\n", argv[0], errno == ENOENT ? "not found" : strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
}

/* Splits the request in place: folder, count, arguments, environment. Returns the argument list, or NULL. */
static char **split_request(struct session *s, char ***env) {
    size_t words = 0;
    if (!s->length || s->request[s->length - 1]) return NULL;
    for (size_t i = 0; i < s->length; i++) words += !s->request[i];
    char *at = s->request + strlen(s->request) + 1;
    if (words < 3) return NULL;
    size_t count = strtoul(at, NULL, 10);
    if (!count || count > words - 2) return NULL;
    char **list = calloc(words + 2, sizeof *list);
    if (!list) return NULL;
    for (size_t i = 0, slot = 0; i < words - 2; i++, slot++) {
        at += strlen(at) + 1;
        if (i == count) slot++; /* the NULL between arguments and environment */
        list[slot] = at;
    }
    *env = list + count + 1;
    return list;
}

static const char *start_command(struct session *s, int terminal) {
    char **env, **argv = split_request(s, &env);
    if (!argv) return "the request is not well formed";
    int theirs[3] = {-1, -1, -1}, pair[2];
    const char *trouble = NULL;
    if (terminal) {
        if (openpty(&s->fd[0], &theirs[0], NULL, NULL, NULL) != 0) trouble = "no terminal is free";
        else s->fd[1] = fcntl(s->fd[0], F_DUPFD_CLOEXEC, 0), theirs[1] = theirs[2] = theirs[0];
    } else
        for (int channel = 0; channel < 3 && !trouble; channel++) {
            if (pipe2(pair, O_CLOEXEC) != 0) trouble = "out of file descriptors";
            else s->fd[channel] = pair[channel == 0], theirs[channel] = pair[channel != 0];
        }
    if (!trouble && (s->pid = fork()) < 0) trouble = "out of memory for a process";
    if (!trouble && s->pid == 0) {
        setsid();
        if (terminal) ioctl(theirs[0], TIOCSCTTY, 0);
        for (int i = 0; i < 3; i++) dup2(theirs[i], i);
        if (terminal && theirs[0] > 2) close(theirs[0]), close(s->fd[0]);
        run_command(argv, env, s->request);
    }
    for (int channel = 0; channel < (terminal ? 1 : 3); channel++) close_fd(&theirs[channel]);
    for (int channel = 0; channel < 3; channel++)
        if (s->fd[channel] >= 0) {
            fcntl(s->fd[channel], F_SETFD, FD_CLOEXEC);
            fcntl(s->fd[channel], F_SETFL, O_NONBLOCK);
        }
    s->terminal = terminal;
    s->length = 0; /* from here on the buffer holds stdin */
    free(argv);
    return trouble;
}

static void refuse(uint32_t id, const char *why) {
    char text[128];
    int length = snprintf(text, sizeof text, "weft-agent: %s\n", why);
    struct session *s = find_session(id);
    if (s) {
        keep_output(s, 2, (unsigned char *)text, length);
        send_output(s, 2);
        s->ended = 1, s->status = 126 << 8;
        for (int channel = 0; channel < 3; channel++) close_fd(&s->fd[channel]);
        return;
    }
    send_frame('D', 2, id, text, length);
    send_number('Q', 0, id, 126);
}

static void take_argument(uint32_t id, const unsigned char *payload, size_t length) {
    struct session *s = find_session(id);
    if (!s && !(s = new_session(id))) return; /* EXECUTE will say so */
    if (s->pid || s->ended) return;
    if (s->length + length > REQUEST) {
        s->length = REQUEST + 1;
        return;
    }
    if (!s->request && !(s->request = malloc(REQUEST))) return; /* pages are real only once written */
    memcpy(s->request + s->length, payload, length);
    s->length += length;
}

static void execute(uint32_t id, int terminal) {
    struct session *s = find_session(id);
    if (!s || !s->request) return refuse(id, "too many commands at once");
    if (s->pid || s->ended) return;
    if (s->length > REQUEST) return refuse(id, "the argument list is too long");
    const char *trouble = start_command(s, terminal);
    if (trouble) refuse(id, trouble);
}

static void run_power(const char *program) {
    sync();
    if (fork() == 0) {
        char *argv[] = {(char *)program, NULL}, *env[] = {NULL};
        setsid();
        run_command(argv, env, "/");
    }
}

static void give_credit(struct session *s, size_t taken) {
    s->owed += taken, s->taken += taken;
    if (!s->id || (s->owed < WINDOW / 4 && s->length)) return;
    send_number('W', 0, s->id, s->owed);
    s->owed = 0;
}

static void write_stdin(struct session *s) {
    while (s->length && s->fd[0] >= 0) {
        ssize_t n = write(s->fd[0], s->request + s->start, s->length);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n < 0) close_fd(&s->fd[0]); /* the command has closed its stdin */
        else {
            s->start += n, s->length -= n;
            give_credit(s, n);
        }
    }
    if (s->fd[0] < 0 && s->length) { /* nobody reads it: taken and dropped, so that the sender doesn't wait for ever */
        size_t dropped = s->length;
        s->length = 0;
        give_credit(s, dropped);
    }
    if (s->stdin_ends && s->fd[0] >= 0) {
        if (s->terminal && write(s->fd[0], "\004", 1) < 0 && errno == EAGAIN) return;
        s->stdin_ends = 0; /* it is told once */
        if (!s->terminal) close_fd(&s->fd[0]);
    }
}

static void obey(const unsigned char *frame, size_t length) {
    int channel = frame[1];
    uint32_t id, number = 0;
    const unsigned char *payload = frame + HEADER;
    memcpy(&id, frame + 4, 4);
    if (length >= 4) memcpy(&number, payload, 4);
    struct session *s = find_session(id);
    switch (frame[0]) {
    case 'H': return length == 24 && !memcmp(payload, MAGIC, 8) ? answer_hello(payload + 8, channel == 1) : (void)0;
    case 'N': return length == NAME + 16 && id ? name_session(channel, id, payload) : (void)0;
    case 'A': return take_argument(id, payload, length);
    case 'X': return execute(id, channel == 1);
    case 'O':
        if (length == 1 && payload[0] == 1) run_power("poweroff");
        if (length == 1 && payload[0] == 2) run_power("reboot");
        return;
    case 'T': {
        uint64_t nanoseconds;
        if (length != 8) return;
        memcpy(&nanoseconds, payload, 8);
        struct timespec now = {.tv_sec = nanoseconds / 1000000000, .tv_nsec = nanoseconds % 1000000000};
        clock_settime(CLOCK_REALTIME, &now);
        return;
    }
    }
    if (!s || !(s->pid || s->ended)) return;
    switch (frame[0]) {
    case 'D':
        if (channel != 0 || s->length + length > WINDOW || !s->pid || s->stdin_ended) return;
        s->received += length;
        if (s->start + s->length + length > REQUEST || !s->length) {
            memmove(s->request, s->request + s->start, s->length);
            s->start = 0;
        }
        memcpy(s->request + s->start + s->length, payload, length);
        s->length += length;
        return write_stdin(s);
    case 'C':
        if (s->stdin_ended) return;
        s->stdin_ends = s->stdin_ended = 1;
        return write_stdin(s);
    case 'W':
        if (channel == 1 || channel == 2) drop_output(s, channel, s->output[channel].first + number);
        return;
    case 'K': return channel == 1 && s->named ? let_go(s) : hang_up(s);
    case 'R':
        if (s->terminal && s->fd[0] >= 0) {
            struct winsize size = {.ws_row = number & 0xffff, .ws_col = number >> 16};
            ioctl(s->fd[0], TIOCSWINSZ, &size);
        }
    }
}

static void read_port(void) {
    static const unsigned char hellos[2][HEADER] = {{'H', 0, 24, 0, 0, 0, 0, 0}, {'H', 1, 24, 0, 0, 0, 0, 0}};
    ssize_t n = read(port, in + in_length, sizeof in - in_length);
    if (n == 0 && !is_port) exit(0);
    if (n <= 0) return;
    in_length += n;
    size_t at = 0;
    while (at < in_length) {
        const unsigned char *frame = in + at;
        size_t have = in_length - at, length;
        if (*frame == 0) at++;
        else if (!synced && memcmp(frame, hellos[have > 1 && frame[1] == 1], have < HEADER ? have : HEADER) != 0) at++;
        else if (have < HEADER) break;
        else if ((length = frame[2] | frame[3] << 8) > PAYLOAD) synced = 0, at++;
        else if (have < HEADER + length + 1) break;
        else if (frame[HEADER + length] != END_MARK) synced = 0, at++;
        else {
            obey(frame, length);
            at += HEADER + length + 1;
        }
    }
    memmove(in, in + at, in_length -= at);
}

static void write_port(void) {
    ssize_t n = write(port, out + out_start, out_length);
    if (n > 0) out_start += n, out_length -= n;
    if (!out_length) out_start = 0;
}

static void read_output(struct session *s, int channel) {
    unsigned char data[PAYLOAD];
    size_t most = WINDOW - (s->output[channel].end - s->output[channel].first);
    if (most > PAYLOAD) most = PAYLOAD;
    if (s->left[channel] >= 0 && (size_t)s->left[channel] < most) most = s->left[channel];
    ssize_t n = most ? read(s->fd[channel], data, most) : 0;
    if (n > 0) {
        keep_output(s, channel, data, n);
        send_output(s, channel);
        if (s->left[channel] > 0) s->left[channel] -= n;
        if (s->ended) s->ended_at = milliseconds();
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR))
        close_fd(&s->fd[channel]);
}

static void reap(void) {
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
        for (int i = 0; i < SESSIONS; i++) {
            struct session *s = sessions[i];
            if (!s || s->pid != pid || s->ended) continue;
            s->ended = 1, s->status = status, s->ended_at = milliseconds();
            for (int channel = 1; channel < 3; channel++) {
                int held = 0;
                if (s->fd[channel] >= 0 && !s->terminal && ioctl(s->fd[channel], FIONREAD, &held) == 0)
                    s->left[channel] = held;
            }
        }
}

/* Tells the exit once the command has ended and all that counts was sent. Returns whether nothing is left to do; one with a
 * name stays until the host has heard it. */
static int finish(struct session *s) {
    if (!s->ended) return 0;
    for (int channel = 1; channel < 3; channel++) {
        if (s->fd[channel] < 0) continue;
        if (s->terminal && s->output[channel].end - s->output[channel].first == WINDOW) s->ended_at = milliseconds();
        if (s->terminal ? milliseconds() - s->ended_at < 50 : s->left[channel] > 0) return 0;
    }
    for (int channel = 0; channel < 3; channel++) close_fd(&s->fd[channel]);
    if (!s->id || s->told || s->output[1].sent < s->output[1].end || s->output[2].sent < s->output[2].end) return 1;
    s->told = 1;
    if (WIFSIGNALED(s->status)) send_number('Q', 1, s->id, WTERMSIG(s->status));
    else send_number('Q', 0, s->id, WEXITSTATUS(s->status));
    if (!s->named) free_session(s);
    return 1;
}

static int open_named_port(const char *wanted) {
    DIR *ports = opendir("/sys/class/virtio-ports");
    int fd = -1;
    for (struct dirent *entry; ports && fd < 0 && (entry = readdir(ports));) {
        char path[300], name[64] = "";
        snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t n = file < 0 ? 0 : read(file, name, sizeof name - 1);
        if (file >= 0) close(file);
        while (n > 0 && name[n - 1] == '\n') name[--n] = 0;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        if (strcmp(name, wanted) == 0) fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    if (ports) closedir(ports);
    return fd;
}

static int open_port(const char *where) {
    if (strncmp(where, "fd:", 3) == 0) {
        int fd = atoi(where + 3);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        return fd;
    }
    is_port = 1;
    int fd = strchr(where, '/') ? open(where, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY) : open_named_port(where);
    if (fd >= 0) { /* the driver signals when the host comes or goes */
        fcntl(fd, F_SETOWN, getpid());
        fcntl(fd, F_SETFL, O_NONBLOCK | O_ASYNC);
    }
    return fd;
}

int main(int argc, char **argv) {
    const char *where = argc > 1 ? argv[1] : "weft.agent.0";
    if (argc > 2) process_file = argv[2];
    began = milliseconds();
    read_line("/proc/sys/kernel/random/uuid", run_id, 37);
    sigset_t handled;
    sigemptyset(&handled);
    sigaddset(&handled, SIGCHLD);
    sigaddset(&handled, SIGIO);
    sigaddset(&handled, SIGUSR1);
    sigprocmask(SIG_BLOCK, &handled, NULL);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &handled, SFD_NONBLOCK | SFD_CLOEXEC);
    for (int pause = 2000; (port = open_port(where)) < 0; usleep(pause))
        if (pause < 1000000) pause += pause / 4;
    memset(reserve(HEADER + PAYLOAD + 1), 0, HEADER + PAYLOAD + 1); /* ends a frame that a predecessor left unfinished */
    out_length = HEADER + PAYLOAD + 1;
    send_frame('B', 0, 0, NULL, 0);
    read_process();

    for (long away_since = 0;;) {
        struct pollfd polled[2 + 3 * SESSIONS];
        struct { struct session *session; int channel; } whose[2 + 3 * SESSIONS];
        int count = 2, timeout = -1;
        polled[0] = (struct pollfd){signals, POLLIN, 0};
        polled[1] = (struct pollfd){port, POLLIN | (out_length ? POLLOUT : 0), 0};
        if (is_port && poll(&polled[1], 1, 0) > 0 && (polled[1].revents & POLLHUP)) {
            /* Nobody is there. The driver tells of comings and goings late, after data of the next host may have come: so
             * only who stays away has left his sessions behind. Its signal wakes us when someone comes. */
            if (!away_since) away_since = milliseconds();
            else if (synced && milliseconds() - away_since > PATIENCE) {
                part_with_host(1);
                synced = 0;
            }
            if (!synced) out_start = out_length = 0;
            polled[1].fd = -1;
            timeout = synced ? PATIENCE / 4 : 1000;
        } else
            away_since = 0;
        end_forgotten();
        for (int i = 0; i < SESSIONS; i++) {
            struct session *s = sessions[i];
            if (!s) continue;
            if (!s->id && (timeout < 0 || timeout > 1000)) timeout = 1000;
            send_output(s, 1), send_output(s, 2);
            if (finish(s)) continue;
            if (s->ended && s->terminal) timeout = 20;
            for (int channel = 0; channel < 3; channel++) {
                struct ring *r = &s->output[channel];
                int wanted = channel ? r->end - r->first < WINDOW && s->left[channel]
                                     : s->pid && (s->length || s->stdin_ends);
                if (!wanted || s->fd[channel] < 0) continue;
                whose[count].session = s, whose[count].channel = channel;
                polled[count++] = (struct pollfd){s->fd[channel], channel ? POLLIN : POLLOUT, 0};
            }
        }
        if (out_length && polled[1].fd >= 0) polled[1].events |= POLLOUT; /* an exit may just have been queued */
        if (poll(polled, count, timeout) < 0 && errno != EINTR) abort();
        struct signalfd_siginfo told;
        while (read(signals, &told, sizeof told) > 0)
            if (told.ssi_signo == SIGUSR1) read_process();
        for (int i = 2; i < count; i++) {
            if (!polled[i].revents) continue;
            if (whose[i].channel) read_output(whose[i].session, whose[i].channel);
            else write_stdin(whose[i].session);
        }
        reap();
        if (polled[1].revents & (POLLIN | POLLHUP | POLLERR)) read_port();
        if (out_length && polled[1].fd >= 0) write_port();
        if (process_untold && synced && !out_length) unlink(taken_file()), process_untold = 0;
    }
}
