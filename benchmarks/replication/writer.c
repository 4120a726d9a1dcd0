/* writer run DISK BYTES_PER_SECOND: writes rounds to a disk, each through to it: a piece with the round's number in all its words,
   then a header with that number. It prints the number once the disk has both, and goes on after the round that the header has.
   writer check DISK: prints the header's number, how many pieces it stands for, and how many of these are not what they were
   written as. The piece that the next round goes to is not looked at: that round may have begun. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 4096, PIECE = 256 << 10, PIECES = 384, WORDS = PIECE / 8 };
static const uint64_t MAGIC = 0x7765667477726974;
static uint64_t header[HEADER / 8] __attribute__((aligned(4096)));
static uint64_t piece[WORDS] __attribute__((aligned(4096)));

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static off_t place(uint64_t round) { return HEADER + (off_t)(round % PIECES) * PIECE; }

static int is_of(uint64_t round) {
    for (int at = 0; at < WORDS; at++)
        if (piece[at] != round) return 0;
    return 1;
}

static int run(int disk, double rate) {
    uint64_t round = header[0] == MAGIC ? header[1] : 0;
    for (double next = now();;) {
        round++;
        for (int at = 0; at < WORDS; at++) piece[at] = round;
        if (pwrite(disk, piece, PIECE, place(round)) != PIECE) return 2;
        header[0] = MAGIC, header[1] = round;
        if (pwrite(disk, header, HEADER, 0) != HEADER) return 2;
        printf("%llu\n", (unsigned long long)round);
        fflush(stdout);
        double at = now();
        next += PIECE / rate;
        if (next < at) next = at; /* a disk that was slower is not made up for */
        usleep((next - at) * 1e6);
    }
}

static int check(int disk) {
    uint64_t round = header[0] == MAGIC ? header[1] : 0;
    int wrong = 0, pieces = round < PIECES - 1 ? round : PIECES - 1;
    for (int back = 0; back < pieces; back++) {
        if (pread(disk, piece, PIECE, place(round - back)) != PIECE) return 2;
        wrong += !is_of(round - back);
    }
    printf("%llu %d %d\n", (unsigned long long)round, pieces, wrong);
    return 0;
}

int main(int argc, char **argv) {
    int disk = argc >= 3 ? open(argv[2], O_RDWR | O_DIRECT | O_DSYNC) : -1;
    if (disk < 0 || pread(disk, header, HEADER, 0) != HEADER) {
        perror(argc >= 3 ? argv[2] : "DISK");
        return 1;
    }
    return strcmp(argv[1], "run") ? check(disk) : run(disk, argc > 3 ? atof(argv[3]) : 1e6);
}
