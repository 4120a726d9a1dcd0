/* Runs in a guest: counter FIRST SECOND SAID [REST], which is the milliseconds between two rounds, 2 without it. Each round it writes its number to the first disk, then to the second, past all
 * caches, keeps it in 16 MiB of memory, and reads all of it back. SAID then says "rounds=N bad=M". So of what is copied at one
 * instant: the first disk is as far as the second or one ahead, and memory that goes on finds on the disks what it wrote there. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096, PAGES = 4096, AT_ONCE = 64 };

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    unsigned rest = argc > 4 ? strtoul(argv[4], 0, 10) : 2;
    int disks[2] = {open(argv[1], O_RDWR | O_DIRECT | O_DSYNC), open(argv[2], O_RDWR | O_DIRECT | O_DSYNC)};
    uint64_t *block, (*memory)[BLOCK / 8] = calloc(PAGES, BLOCK), *shadow = calloc(PAGES, 8), bad = 0;
    if (disks[0] < 0 || disks[1] < 0 || !memory || !shadow || posix_memalign((void **)&block, BLOCK, BLOCK)) return 3;
    char line[80], temporary[300];
    snprintf(temporary, sizeof temporary, "%s.new", argv[3]);
    for (uint64_t round = 1;; round++) {
        for (int d = 0; d < 2; d++) {
            memset(block, 0, BLOCK);
            *block = round;
            if (pwrite(disks[d], block, BLOCK, 0) != BLOCK) bad++;
        }
        for (int i = 0; i < AT_ONCE; i++) {
            uint64_t page = (round * AT_ONCE + i) % PAGES;
            if (*memory[page] != shadow[page]) bad++;
            *memory[page] = shadow[page] = round;
        }
        for (int d = 0; d < 2; d++)
            if (pread(disks[d], block, BLOCK, 0) != BLOCK || *block != round) bad++;
        int file = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        int length = snprintf(line, sizeof line, "rounds=%llu bad=%llu\n", (unsigned long long)round, (unsigned long long)bad);
        if (write(file, line, length) == length) rename(temporary, argv[3]);
        close(file);
        usleep(rest * 1000);
    }
}
