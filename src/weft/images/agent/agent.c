/* weft's guest agent: commands for the host over one framed byte stream, many at once.
 *
 * The stream is a virtio-serial port (found by its name), or for tests any path or `fd:N`. Its other end may vanish and
 * come back at any moment, in the middle of a frame, so trust begins with HELLO: the host sends enough zeros to end any
 * frame, then HELLO with a random nonce; the agent forgets what it wanted to send and answers HELLO with the same nonce.
 * Before that the host ignores what arrives. A zero where a frame begins is skipped. A frame whose last byte isn't
 * END_MARK was cut: it is not obeyed, and everything is ignored until the next HELLO.
 *
 * A session with a name (NAME) outlives its host: the guest may have migrated to another one, or the host's agent may have
 * been killed. The next caller sends the name and how much of the output has arrived, gets the rest, and learns how
 * much of the input is here. Its exit is kept too, until HANG_UP acknowledges it. If nobody names it for
 * KEEP, it is hung up. Sessions without a name end with the host that began them. A host that knows of names says HELLO
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
 *   'R' RESIZE   to the guest: rows u16, columns u16 of the session's terminal, also before its EXECUTE
 *   'Q' EXITED   to the host: channel 0: exit code u32; channel 1: signal u32. The session's last frame
 *   'P' PROCESS  to the host: how the one process is that this machine is there for, after HELLO and when it changes: channel 0
 *                it runs, 1 it doesn't; u32 each of how often it has ended by itself and of its last exit code (128 + signal).
 *                PID 1 writes it into a file, RUNS ENDS CODE, and signals; that file is gone once the host has its content
 *   'O' POWER    to the guest: u8 1 power off, 2 reboot
 *   'T' TIME     to the guest: nanoseconds u64 since 1970: set the clock (it stood still while the guest was suspended)
 *   'F' FREEZE   to the guest: u32 milliseconds: freeze the disks' file systems for at most so long; 0: let them go. To the host:
 *                channel 0: they are frozen, u32 how many, or were until now, u32 for how many milliseconds; channel 1: not, or
 *                not until now, u32 errno. They go by themselves when their time is up or the host has gone (see freeze.h)
 *   'U' UNUSED   to the guest: give the blocks of the disks' file systems that no file uses back to the host. To the host: channel
 *                0: u32 how many KiB; channel 1: it failed, u32 errno (see trim.h)
 *   'I' IDENTITY to the guest: what makes it another machine than the one whose memory it has (see identity.h). To the host: u32,
 *                a bit for each thing that failed
 *
 * A session ends with its command: what the pipes held at that moment is still sent, but children that live on in the
 * background and keep them open are not waited for.
 */
#include "command.h"
#include "freeze.h"
#include "identity.h"
#include "trim.h"

enum { OWN = 4 }; /* what the agent waits for beside its sessions */

static const char *process_file = "/run/weft/process";
static unsigned process_runs, process_report[2]; /* ends, code */
static int process_known, process_untold;

static void tell_process(void) {
    if (process_known && synced) send_frame('P', !process_runs, 0, process_report, sizeof process_report);
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
    if (rename(process_file, taken_file()) != 0 || read_file(taken_file(), line, sizeof line) <= 0) return;
    if (sscanf(line, "%u %u %u", &runs, &ends, &code) != 3) return;
    process_runs = runs, process_report[0] = ends, process_report[1] = code;
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
    read_file("/proc/sys/kernel/random/boot_id", at, 37);
    at += strlen(at) + 1;
    gethostname(at, 65);
    at += strlen(at) + 1;
    strcpy(at, run_id);
    part_with_host(knows_names);
    let_thaw();
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
        s->id = id, s->exit_sent = 0, s->owed = 0;
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
    case 'T':
        if (length == 8) set_clock(payload);
        return;
    case 'F':
        if (length == 4 && id) number ? freeze_file_systems(id, number) : thaw_file_systems(id);
        return;
    case 'U':
        if (id) trim_file_systems(id);
        return;
    case 'I':
        if (id) renew(id, payload, length);
        return;
    case 'R':
        if (!s || length != 4) return;
        s->size = number;
        if (s->terminal && s->fd[0] >= 0) {
            struct winsize size = read_size(s);
            ioctl(s->fd[0], TIOCSWINSZ, &size);
        }
        return;
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
    read_file("/proc/sys/kernel/random/uuid", run_id, 37);
    static const int handled_signals[] = {SIGCHLD, SIGIO, SIGUSR1, 0};
    sigset_t handled = hold_signals(handled_signals);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &handled, SFD_NONBLOCK | SFD_CLOEXEC);
    for (int pause = 2000; (port = open_port(where)) < 0; usleep(pause))
        if (pause < 1000000) pause += pause / 4;
    memset(reserve(HEADER + PAYLOAD + 1), 0, HEADER + PAYLOAD + 1); /* ends a frame that a predecessor left unfinished */
    out_length = HEADER + PAYLOAD + 1;
    send_frame('B', 0, 0, NULL, 0);
    read_process();

    for (long away_since = 0;;) {
        struct pollfd polled[OWN + 3 * SESSIONS];
        struct { struct session *session; int channel; } whose[OWN + 3 * SESSIONS];
        int count = OWN, timeout = renewal.script ? 1000 : -1;
        polled[0] = (struct pollfd){signals, POLLIN, 0};
        polled[1] = (struct pollfd){port, POLLIN | (out_length ? POLLOUT : 0), 0};
        polled[2] = (struct pollfd){freezer.fd, POLLIN, 0};
        polled[3] = (struct pollfd){trimmer.fd, POLLIN, 0};
        if (is_port && poll(&polled[1], 1, 0) > 0 && (polled[1].revents & POLLHUP)) {
            /* Nobody is there. The driver tells of comings and goings late, after data of the next host may have come: so
             * only who stays away has left his sessions behind. Its signal wakes us when someone comes. */
            if (!away_since) away_since = milliseconds();
            else if (synced && milliseconds() - away_since > PATIENCE) {
                part_with_host(1);
                let_thaw();
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
        struct signalfd_siginfo signalled;
        while (read(signals, &signalled, sizeof signalled) > 0)
            if (signalled.ssi_signo == SIGUSR1) read_process();
        for (int i = OWN; i < count; i++) {
            if (!polled[i].revents) continue;
            if (whose[i].channel) read_output(whose[i].session, whose[i].channel);
            else write_stdin(whose[i].session);
        }
        reap();
        end_late_renewal();
        if (polled[2].revents) hear_freezer();
        if (polled[3].revents) hear_trimmer();
        if (polled[1].revents & (POLLIN | POLLHUP | POLLERR)) read_port();
        if (out_length && polled[1].fd >= 0) write_port();
        if (process_untold && synced && !out_length) unlink(taken_file()), process_untold = 0;
    }
}
