/* Blocks that no file uses any more, given back to the host.
 *
 * A child does it, file system by file system: that may take long, and the agent itself never waits for a disk. One at a time; of
 * a host that asks again the first question is answered as the last one is.
 */
#pragma once
#include "freeze.h"

#include <linux/fs.h>

static struct {
    int fd;         /* to the child; -1: there is none */
    uint32_t asker; /* whose question it has yet to answer */
} trimmer = {-1, 0};

/* {1, how many KiB in all}, or {0, errno}; a file system that can't be trimmed, and one that refuses, is passed over if another
 * one was. */
static void trim_all(int host) {
    int roots[MOST_FILE_SYSTEMS], count = open_file_systems(roots), trimmed = 0;
    uint64_t bytes = 0;
    uint32_t answer[2] = {0, EOPNOTSUPP};
    for (int i = 0; i < count; i++) {
        struct fstrim_range range = {0, UINT64_MAX, 0};
        if (ioctl(roots[i], FITRIM, &range) == 0) trimmed = 1, bytes += range.len;
        else if (errno != EOPNOTSUPP && errno != ENOTTY) answer[1] = errno;
    }
    if (trimmed) answer[0] = 1, answer[1] = bytes >> 10 > UINT32_MAX ? UINT32_MAX : bytes >> 10;
    send(host, answer, sizeof answer, MSG_NOSIGNAL);
    _exit(0);
}

static void answer_trim(int fine, uint32_t number) {
    if (trimmer.asker) send_number('U', !fine, trimmer.asker, number);
    trimmer.asker = 0;
}

static void trim_file_systems(uint32_t id) {
    int pair[2];
    trimmer.asker = id;
    if (trimmer.fd >= 0) return; /* it is being done */
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return answer_trim(0, errno);
    pid_t child = fork();
    if (child == 0) {
        dup2(pair[1], 3); /* it keeps nothing of the agent's open */
        syscall(SYS_close_range, 4, ~0U, 0);
        trim_all(3);
    }
    close(pair[1]);
    trimmer.fd = pair[0];
    if (child < 0) answer_trim(0, errno), close_fd(&trimmer.fd);
}

static void hear_trimmer(void) {
    uint32_t said[2];
    ssize_t size = recv(trimmer.fd, said, sizeof said, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size == sizeof said) answer_trim(said[0], said[1]);
    else answer_trim(0, 0);
    close_fd(&trimmer.fd);
}
