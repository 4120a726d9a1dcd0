/* fsync FILE SECONDS: writes 4 KiB and has them reach the disk, again and again, where 16 MiB are already; prints how many times,
   and the microseconds that half of them, 99 of 100, and all of them needed at most. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, BLOCKS = 4096, MOST = 1 << 20 };
static unsigned took[MOST];

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static int order(const void *a, const void *b) {
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    static char block[BLOCK];
    int file = argc == 3 ? open(argv[1], O_RDWR | O_CREAT, 0600) : -1;
    if (file < 0) return 1;
    for (int at = 0; at < BLOCKS; at++)
        if (pwrite(file, block, BLOCK, (off_t)at * BLOCK) != BLOCK) return 2;
    if (fsync(file)) return 2;
    int count = 0;
    double end = now() + atof(argv[2]);
    for (double began = now(); began < end && count < MOST; began = now()) {
        memset(block, count, BLOCK);
        if (pwrite(file, block, BLOCK, (off_t)(random() % BLOCKS) * BLOCK) != BLOCK || fdatasync(file)) return 2;
        took[count++] = (now() - began) * 1e6;
    }
    qsort(took, count, sizeof *took, order);
    printf("%d %u %u %u\n", count, took[count / 2], took[(int)(count * 0.99)], took[count - 1]);
    return 0;
}
