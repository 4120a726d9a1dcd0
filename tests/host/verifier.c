/* Runs in a guest: keeps writing memory and a file, and notices what was lost or is stale.
 *
 * verifier MIB PAGES_PER_SECOND FILE VERDICT: every page says its number and how often it was written, and a table far from it
 * says the same; each round all pages are written, read again and compared, and the file's counter, synced each round,
 * with the one in memory. VERDICT then says "rounds=N bad=M". */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define WORDS 512

static uint64_t mix(uint64_t page, uint64_t turn, uint64_t word) {
    uint64_t x = page * 0x9E3779B97F4A7C15u ^ turn * 0xC2B2AE3D27D4EB4Fu ^ word;
    x ^= x >> 31;
    return x * 0xD6E8FEB86659FD93u;
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    size_t pages = strtoul(argv[1], 0, 10) * 256, rate = strtoul(argv[2], 0, 10);
    uint64_t(*memory)[WORDS] = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t *turns = calloc(pages, sizeof *turns), round = 0, bad = 0;
    int file = open(argv[3], O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (memory == MAP_FAILED || !turns || file < 0) return 3;
    for (;;) {
        round++;
        for (size_t p = 0; p < pages; p++) {
            turns[p]++;
            for (int w = 0; w < WORDS; w += 64) memory[p][w] = mix(p, turns[p], w);
            if (p % 64 == 63) nanosleep(&(struct timespec){0, 64 * (1000000000 / rate)}, 0);
        }
        for (size_t p = 0; p < pages; p++)
            for (int w = 0; w < WORDS; w += 64)
                if (memory[p][w] != mix(p, turns[p], w)) { bad++; break; }
        uint64_t before = 0;
        if (round > 1 && (pread(file, &before, sizeof before, 0) != sizeof before || before != round - 1)) bad++;
        if (pwrite(file, &round, sizeof round, 0) != sizeof round || fsync(file)) bad++;
        char next[256];
        snprintf(next, sizeof next, "%s.next", argv[4]);
        FILE *verdict = fopen(next, "w");
        if (!verdict) return 4;
        fprintf(verdict, "rounds=%llu bad=%llu\n", (unsigned long long)round, (unsigned long long)bad);
        fclose(verdict);
        rename(next, argv[4]);
    }
}
