/* One session's command: how it begins, its input and output, how its end is reported. */
#pragma once
#include "identity.h"
#include "session.h"

#include <pty.h>
#include <termios.h>

/* The agent answers before DHCP has, because readiness is about the machine. A person who types a command right after the
 * create expects a network all the same: the first commands of a boot wait for it, or until it has had its chance. */
static void await_network(void) {
    while (is_port && milliseconds() < began + NETWORK_WAIT_MS && access("/run/network-tried", F_OK) != 0) usleep(20000);
}

static void run_command(char **argv, char **env, const char *folder) {
    allow_signals();
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

static struct winsize read_size(const struct session *s) {
    return (struct winsize){.ws_row = s->size & 0xffff, .ws_col = s->size >> 16};
}

static const char *start_command(struct session *s, int terminal) {
    char **env, **argv = split_request(s, &env);
    if (!argv) return "the request is not well formed";
    int theirs[3] = {-1, -1, -1}, pair[2];
    const char *trouble = NULL;
    if (terminal) {
        struct winsize size = read_size(s);
        if (openpty(&s->fd[0], &theirs[0], NULL, NULL, &size) != 0) trouble = "no terminal is free";
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
    if (!s && !(s = new_session(id))) return; /* EXECUTE will report it */
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
        s->stdin_ends = 0; /* it is reported once */
        if (!s->terminal) close_fd(&s->fd[0]);
    }
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
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        take_renewal_end(pid, status);
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
}

/* Tells the exit once the command has ended and all that counts was sent. Returns whether nothing is left to do; one with a
 * name stays until the host has it. */
static int finish(struct session *s) {
    if (!s->ended) return 0;
    for (int channel = 1; channel < 3; channel++) {
        if (s->fd[channel] < 0) continue;
        if (s->terminal && s->output[channel].end - s->output[channel].first == WINDOW) s->ended_at = milliseconds();
        if (s->terminal ? milliseconds() - s->ended_at < 50 : s->left[channel] > 0) return 0;
    }
    for (int channel = 0; channel < 3; channel++) close_fd(&s->fd[channel]);
    if (!s->id || s->exit_sent || s->output[1].sent < s->output[1].end || s->output[2].sent < s->output[2].end) return 1;
    s->exit_sent = 1;
    if (WIFSIGNALED(s->status)) send_number('Q', 1, s->id, WTERMSIG(s->status));
    else send_number('Q', 0, s->id, WEXITSTATUS(s->status));
    if (!s->named) free_session(s);
    return 1;
}
