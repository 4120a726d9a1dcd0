/* beacon NAME DISK PORT ADDRESS...: counts, ten times a second. Each number is written through to the file or disk DISK, as a record and
   then as the newest one; only then it is sent to each address, by UDP: "NAME BOOT NUMBER BEGAN WRONG". BOOT is drawn when it starts,
   BEGAN is the newest number that it found then, WRONG how many of the records before that aren't what they should be. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 4096, RECORDS = 256, WORDS = SIZE / 8, MOST = 8 };
static const uint64_t MAGIC = 0x77656674736f616b;
static uint64_t block[WORDS] __attribute__((aligned(4096)));

static void fill(uint64_t number, uint64_t boot) {
    for (int at = 0; at < WORDS; at++) block[at] = number * 2654435761u + at;
    block[0] = MAGIC, block[1] = number, block[2] = boot;
}

static int put(int disk, off_t at) { return pwrite(disk, block, SIZE, at) == SIZE; }

static off_t place(uint64_t number) { return SIZE * (1 + (off_t)(number % RECORDS)); }

static int is_wrong(int disk, uint64_t number) {
    if (pread(disk, block, SIZE, place(number)) != SIZE || block[0] != MAGIC || block[1] != number) return 1;
    for (int at = 3; at < WORDS; at++)
        if (block[at] != number * 2654435761u + at) return 1;
    return 0;
}

int main(int argc, char **argv) {
    int disk = argc > 4 ? open(argv[2], O_RDWR | O_CREAT | O_DSYNC, 0600) : -1, line = socket(AF_INET, SOCK_DGRAM, 0);
    if (disk < 0 || line < 0) return perror(argc > 4 ? argv[2] : "NAME DISK PORT ADDRESS..."), 1;
    uint64_t boot = 0, began = 0, wrong = 0;
    while (getrandom(&boot, sizeof boot, 0) != sizeof boot) usleep(10000);
    if (pread(disk, block, SIZE, 0) == SIZE && block[0] == MAGIC) began = block[1];
    uint64_t count = began < RECORDS - 1 ? began : RECORDS - 1; /* the next one's place may have been written already */
    for (uint64_t back = 0; back < count; back++) wrong += is_wrong(disk, began - back);
    for (uint64_t number = began + 1;; number++) {
        fill(number, boot);
        if (!put(disk, place(number)) || !put(disk, 0)) return perror(argv[2]), 2;
        char text[200];
        int size = snprintf(text, sizeof text, "%s %016llx %llu %llu %llu", argv[1], (unsigned long long)boot,
                            (unsigned long long)number, (unsigned long long)began, (unsigned long long)wrong);
        for (int at = 4; at < argc; at++) {
            struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
            if (inet_pton(AF_INET, argv[at], &to.sin_addr) == 1) sendto(line, text, size, 0, (struct sockaddr *)&to, sizeof to);
        }
        usleep(100000);
    }
}
