/* File systems that stand still while a host copies what lies below them.
 *
 * A child freezes them, and lets them go when it is told to, when the agent or the host has gone, and when its time is up: the
 * agent itself must never wait for a disk. What it has written by then is on the disks, and nothing comes after.
 */
#pragma once
#include "session.h"

#include <mntent.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>

enum { MOST_FILE_SYSTEMS = 64, FREEZE_MOST_MS = 30000 };

static struct {
    int fd;          /* to the child; -1: nothing is frozen */
    uint32_t asker;  /* whose question it has yet to answer; 0: none */
} freezer = {-1, 0};

/* The disks' file systems that can be written to, each once, in the order in which they were mounted. */
static int open_file_systems(int *roots) {
    FILE *mounts = setmntent("/proc/self/mounts", "re");
    dev_t seen[MOST_FILE_SYSTEMS];
    int count = 0;
    for (struct mntent *mount; mounts && count < MOST_FILE_SYSTEMS && (mount = getmntent(mounts));) {
        struct stat root;
        int known = *mount->mnt_fsname != '/' || hasmntopt(mount, "ro") || stat(mount->mnt_dir, &root) != 0;
        for (int i = 0; !known && i < count; i++) known = seen[i] == root.st_dev;
        int fd = known ? -1 : open(mount->mnt_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (fd >= 0) seen[count] = root.st_dev, roots[count++] = fd;
    }
    if (mounts) endmntent(mounts);
    return count;
}

/* Those above others first, as for unmounting. Some can't be frozen, or are frozen already: they stay as they are. */
static int freeze_all(int *roots, int count) {
    int frozen = 0;
    for (int i = count - 1; i >= 0; i--)
        if (ioctl(roots[i], FIFREEZE, 0) == 0) frozen++;
        else if (errno == EOPNOTSUPP || errno == ENOTTY || errno == EBUSY) roots[i] = -1;
        else return -errno;
    return frozen;
}

static void thaw_all(int *roots, int count) {
    for (int i = 0; i < count; i++)
        if (roots[i] >= 0) ioctl(roots[i], FITHAW, 0);
}

/* First {1, how many are frozen}, or {0, errno}; at the end {1, how many milliseconds that lasted} if it lasted until it was told. */
static void hold_still(int host, long limit_ms) {
    int roots[MOST_FILE_SYSTEMS], count = open_file_systems(roots);
    mlockall(MCL_CURRENT | MCL_FUTURE); /* nothing of it is read from a disk from here on */
    for (int i = 0; i < count; i++) syncfs(roots[i]); /* so that freezing has little left to write */
    long since = milliseconds();
    int frozen = freeze_all(roots, count), told = 0;
    uint32_t answer[2] = {frozen >= 0, frozen >= 0 ? frozen : -frozen};
    if (frozen >= 0 && send(host, answer, sizeof answer, MSG_NOSIGNAL) == sizeof answer) {
        struct pollfd wait = {host, POLLIN, 0};
        long left = since + limit_ms - milliseconds();
        char word;
        told = left > 0 && poll(&wait, 1, left) > 0 && recv(host, &word, 1, 0) == 1;
    }
    thaw_all(roots, count);
    if (frozen < 0) send(host, answer, sizeof answer, MSG_NOSIGNAL);
    answer[1] = milliseconds() - since;
    if (told) send(host, answer, sizeof answer, MSG_NOSIGNAL);
    _exit(0);
}

static void answer_freeze(int fine, uint32_t number) {
    if (freezer.asker) send_number('F', !fine, freezer.asker, number);
    freezer.asker = 0;
}

/* Without a word, so also when nobody is left to ask for it. */
static void let_thaw(void) {
    close_fd(&freezer.fd);
    freezer.asker = 0;
}

static void freeze_file_systems(uint32_t id, uint32_t limit_ms) {
    int pair[2];
    let_thaw();
    freezer.asker = id;
    if (limit_ms > FREEZE_MOST_MS) limit_ms = FREEZE_MOST_MS;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) return answer_freeze(0, errno);
    pid_t child = fork();
    if (child == 0) {
        dup2(pair[1], 3); /* it keeps nothing of the agent's open: a command would wait for an end of its input */
        syscall(SYS_close_range, 4, ~0U, 0);
        hold_still(3, limit_ms);
    }
    close(pair[1]);
    freezer.fd = pair[0];
    if (child < 0) answer_freeze(0, errno), let_thaw();
}

static void thaw_file_systems(uint32_t id) {
    freezer.asker = id;
    if (freezer.fd < 0 || send(freezer.fd, "", 1, MSG_NOSIGNAL) != 1) answer_freeze(0, 0), let_thaw();
}

static void hear_freezer(void) {
    uint32_t said[2];
    ssize_t size = recv(freezer.fd, said, sizeof said, MSG_DONTWAIT);
    if (size == sizeof said) return answer_freeze(said[0], said[1]);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    answer_freeze(0, 0); /* its time was up */
    let_thaw();
}
