/* Runs in a guest: keeps writing memory and a file, and notices what was lost or is stale.
 *
 * verifier MIB PAGES_PER_SECOND FILE VERDICT [KIND]: what stands in every page follows from its number and from how often it
 * was written, and a table far from it says how often that was; each round all pages are written, read again and
 * compared, and the file's counter, synced each round, with the one in memory. VERDICT then says "rounds=N bad=M".
 *
 * KIND, as of the guests that moves are planned for: c, a counter (one word of a page changes, the rest is random and stays);
 * r, random (all of it changes, nothing compresses it); t, text (all of it changes, half its size compressed); without
 * one, every 64th word changes and the rest is zero. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define WORDS 512
#define AT_ONCE 64 /* pages between two rests */

static uint64_t mix(uint64_t page, uint64_t turn) {
    uint64_t x = page * 0x9E3779B97F4A7C15u ^ turn * 0xC2B2AE3D27D4EB4Fu ^ 0x2545F4914F6CDD1Du;
    x ^= x >> 31;
    return x * 0xD6E8FEB86659FD93u;
}

static uint64_t content(char kind, uint64_t page, uint64_t turn, int word) {
    uint64_t x = mix(page, kind == 'c' && word ? 0 : turn) + word * 0x9E3779B97F4A7C15u;
    x ^= x >> 29;
    if (kind != 't') return x;
    x = (x & 0xFFFF) | (x & 0xFFFF0000) << 16; /* eight letters of sixteen */
    x = (x | x << 8) & 0x00FF00FF00FF00FFu;
    x = (x | x << 4) & 0x0F0F0F0F0F0F0F0Fu;
    return x + 0x6161616161616161u;
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    size_t pages = strtoul(argv[1], 0, 10) * 256, rate = strtoul(argv[2], 0, 10);
    char kind = argc > 5 ? argv[5][0] : 'w';
    int step = kind == 'w' ? 64 : 1, written = kind == 'c' ? 1 : WORDS;
    uint64_t(*memory)[WORDS] = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint64_t *turns = calloc(pages, sizeof *turns), round = 0, bad = 0;
    int file = open(argv[3], O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (memory == MAP_FAILED || !turns || file < 0 || !rate) return 3;
    if (kind == 'c')
        for (size_t p = 0; p < pages; p++)
            for (int w = 0; w < WORDS; w++) memory[p][w] = content(kind, p, 0, w);
    int64_t rest = AT_ONCE * (1000000000 / (int64_t)rate), next = 0;
    for (;;) {
        round++;
        for (size_t p = 0; p < pages; p++) {
            turns[p]++;
            for (int w = 0; w < written; w += step) memory[p][w] = content(kind, p, turns[p], w);
            if (p % AT_ONCE != AT_ONCE - 1) continue;
            struct timespec t; /* by the clock, so that the work itself doesn't lower the rate */
            clock_gettime(CLOCK_MONOTONIC, &t);
            int64_t now = t.tv_sec * 1000000000LL + t.tv_nsec;
            next = next + rest > now ? next + rest : now;
            if (next > now) nanosleep(&(struct timespec){(next - now) / 1000000000, (next - now) % 1000000000}, 0);
        }
        for (size_t p = 0; p < pages; p++)
            for (int w = 0; w < WORDS; w += step)
                if (memory[p][w] != content(kind, p, turns[p], w)) { bad++; break; }
        uint64_t before = 0;
        if (round > 1 && (pread(file, &before, sizeof before, 0) != sizeof before || before != round - 1)) bad++;
        if (pwrite(file, &round, sizeof round, 0) != sizeof round || fsync(file)) bad++;
        char name[256];
        snprintf(name, sizeof name, "%s.next", argv[4]);
        FILE *verdict = fopen(name, "w");
        if (!verdict) return 4;
        fprintf(verdict, "rounds=%llu bad=%llu\n", (unsigned long long)round, (unsigned long long)bad);
        fclose(verdict);
        rename(name, argv[4]);
    }
}
