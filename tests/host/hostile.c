/* What a guest's root can do to its node's agent: takes the port of weft's guest agent, greets the host as that would, and then
 * does what each command that the host starts is called:
 *
 *   output SECONDS    output of the command, whatever credit it was given
 *   credit SECONDS    credit for stdin that was never sent
 *   process SECONDS   how a process is that this machine isn't there for, another word each time
 *   births SECONDS    a new agent, again and again, which greets with words of any length
 *   random SECONDS    frames of any kind, and bytes that are none
 *   leave             the agent that was stopped is killed: PID 1 starts another
 */
#include <fcntl.h>
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 8, PAYLOAD = 16384, FRAME = HEADER + PAYLOAD + 1, BATCH = 1 << 16 };

static int port;
static unsigned char in[1 << 20], out[BATCH + 2 * FRAME], request[1 << 16];
static size_t in_length, out_length;
static uint32_t session;
static uint64_t chance = 88172645463325252ull;

static uint64_t draw(void) {
    chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
    return chance;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void add(char type, int channel, uint32_t id, const void *payload, uint16_t length) {
    unsigned char *frame = out + out_length;
    frame[0] = type, frame[1] = channel;
    memcpy(frame + 2, &length, 2);
    memcpy(frame + 4, &id, 4);
    memcpy(frame + HEADER, payload, length);
    frame[HEADER + length] = 0xa5;
    out_length += HEADER + length + 1;
}

/* Writes what there is, as fast as the host takes it, until `until`; then the rest of the frame that was begun. */
static int flush(double until, size_t frame) {
    size_t at = 0;
    while (at < out_length) {
        struct pollfd polled = {port, POLLOUT, 0};
        if (now() > until && (!frame || at % frame == 0)) break;
        if (poll(&polled, 1, 50) <= 0) continue;
        ssize_t n = write(port, out + at, out_length - at);
        if (n > 0) at += n;
    }
    out_length = 0;
    return now() < until;
}

static void greet(const unsigned char *nonce, int longwinded) {
    static unsigned char payload[PAYLOAD];
    size_t length = 25;
    memcpy(payload, "weftga\r\n", 8);
    memcpy(payload + 8, nonce, 16);
    payload[24] = 2;
    for (int i = 0; i < 3; i++) {
        size_t letters = longwinded ? 5000 : 6;
        for (size_t n = 0; n < letters; n++) payload[length++] = longwinded ? 1 + (int)(draw() % 255) : 'a' + i;
        payload[length++] = 0;
    }
    add('H', 0, 0, payload, length);
    flush(now() + 60, 0);
}

/* Takes what has come: the newest HELLO is answered, a request's first word and number kept. 1: a command is to be done. */
static int listen_once(int wait_ms, int longwinded) {
    struct pollfd polled = {port, POLLIN, 0};
    if (poll(&polled, 1, wait_ms) > 0 && in_length < sizeof in) {
        ssize_t n = read(port, in + in_length, sizeof in - in_length);
        if (n > 0) in_length += n;
    }
    size_t at = 0;
    int asked = 0;
    while (!asked && at < in_length) {
        uint16_t length;
        if (!in[at]) { at++; continue; }
        if (in_length - at < HEADER) break;
        memcpy(&length, in + at + 2, 2);
        if (length > PAYLOAD) { at++; continue; }
        if (in_length - at < HEADER + (size_t)length + 1u) break;
        const unsigned char *payload = in + at + HEADER;
        if (in[at] == 'H' && in[at + 1] == 1 && length == 24) greet(payload + 8, longwinded);
        if (in[at] == 'A') memcpy(request, payload, length);
        if (in[at] == 'X') memcpy(&session, in + at + 4, 4), asked = 1;
        at += HEADER + length + 1;
    }
    memmove(in, in + at, in_length -= at);
    return asked;
}

static void flood(const char *what, double seconds) {
    static unsigned char junk[PAYLOAD];
    double until = now() + seconds;
    for (size_t i = 0; i < sizeof junk; i++) junk[i] = draw();
    uint32_t count = 0, credit = 60000;
    size_t frame = 0;
    do {
        while (out_length < BATCH) {
            size_t before = out_length;
            uint32_t process[2] = {++count, count % 256};
            if (!strcmp(what, "output")) add('D', 1, session, junk, PAYLOAD);
            else if (!strcmp(what, "credit")) add('W', 0, session, &credit, 4);
            else if (!strcmp(what, "process")) add('P', count % 2, 0, process, 8);
            else if (!strcmp(what, "births")) {
                add('B', 0, 0, junk, 0);
                break;
            } else if (draw() % 8) add("DWNQPBHZ"[draw() % 8], draw() % 4, draw() % 3 ? session : draw(), junk, draw() % 3 ? draw() % 20 : draw() % PAYLOAD);
            else memcpy(out + out_length, junk, 700), out_length += 700;
            frame = strcmp(what, "random") ? out_length - before : 0;
        }
        if (!strcmp(what, "births")) flush(until, 0), listen_once(20, 1);
    } while (flush(until, frame));
}

static void write_file(const char *path, const char *text) {
    int file = open(path, O_WRONLY);
    if (file < 0 || write(file, text, strlen(text)) < 0) exit(3);
    close(file);
}

/* The port is its first opener's: the driver lets go of the device, and the stopped agent doesn't open it again. */
static void take_port(void) {
    const char *driver = "/sys/bus/virtio/drivers/virtio_console";
    char path[300], device[256] = "", name[64];
    DIR *folder = opendir(driver);
    for (struct dirent *entry; folder && (entry = readdir(folder));)
        if (!strncmp(entry->d_name, "virtio", 6)) snprintf(device, sizeof device, "%s", entry->d_name);
    if (!*device) exit(4);
    snprintf(path, sizeof path, "%s/unbind", driver), write_file(path, device);
    snprintf(path, sizeof path, "%s/bind", driver), write_file(path, device);
    for (int tries = 0; tries < 500; tries++, usleep(20000)) {
        DIR *ports = opendir("/sys/class/virtio-ports");
        for (struct dirent *entry; ports && (entry = readdir(ports));) {
            snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
            int file = open(path, O_RDONLY);
            ssize_t n = file < 0 ? 0 : read(file, name, sizeof name - 1);
            if (file >= 0) close(file);
            if (n < 12 || strncmp(name, "weft.agent.0", 12)) continue;
            snprintf(path, sizeof path, "/dev/%s", entry->d_name);
            port = open(path, O_RDWR | O_NONBLOCK);
            if (port >= 0) return;
        }
        if (ports) closedir(ports);
    }
    exit(5);
}

int main(int argc, char **argv) {
    pid_t agent = argc > 1 ? atoi(argv[1]) : 0;
    if (agent < 2 || kill(agent, SIGSTOP) != 0) return 2;
    take_port();
    static const unsigned char none[1];
    add('B', 0, 0, none, 0), flush(now() + 10, 0);
    for (double until = now() + 120; now() < until;) {
        if (!listen_once(1000, 0)) continue;
        const char *word = (char *)request + strlen((char *)request) + 1; /* folder, count, words */
        const char *what = word + strlen(word) + 1, *seconds = what + strlen(what) + 1;
        if (!strcmp(what, "leave")) break;
        flood(what, atof(seconds));
    }
    kill(agent, SIGKILL);
    return 0;
}
