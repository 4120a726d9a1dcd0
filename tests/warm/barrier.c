/* PID 1 of a machine that is saved while it waits here, until the machine that goes on from it says that it is one.
 *
 * It is asked by a file of QEMU's configuration device, which is the running machine's and no part of what was saved:
 * "wait" or "go". Then whatever must differ between two machines from the same memory is made different (random numbers,
 * the clock), and the image's own init begins.
 *
 * No driver but the kernel's built-in ones is loaded yet. See tests/warm/__init__.py.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/random.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SERIAL 0x3f8
#define SELECT 0x510 /* QEMU's docs/specs/fw_cfg.rst: a selector of 16 bits, and a port of bytes */
#define DIRECTORY 0x19
#define NAME "opt/weft.warm"

static void print(const char *text) {
    for (; *text; text++) {
        while (!(inb(SERIAL + 5) & 0x20)) {
        }
        outb(*text, SERIAL);
    }
}

static uint32_t take(int bytes) {
    uint32_t value = 0;
    while (bytes--) value = value << 8 | inb(SELECT + 1);
    return value;
}

/* What the file says, as a string; how long it is, 0 if there is none. */
static size_t ask(char *data, size_t size) {
    uint32_t length = 0;
    uint16_t selector = 0;
    outw(DIRECTORY, SELECT);
    for (uint32_t files = take(4); files && !selector; files--) {
        char name[56];
        uint32_t bytes = take(4);
        uint16_t key = take(4) >> 16;
        for (size_t at = 0; at < sizeof name; at++) name[at] = inb(SELECT + 1);
        if (strcmp(name, NAME) == 0) selector = key, length = bytes;
    }
    if (!selector) return 0;
    if (length >= size) length = size - 1;
    outw(selector, SELECT);
    for (uint32_t at = 0; at < length; at++) data[at] = inb(SELECT + 1);
    data[length] = 0;
    return length;
}

/* Two machines from one memory would draw the same numbers; their CPUs' own are each its own. */
static void differ(void) {
    struct {
        struct rand_pool_info info;
        uint64_t words[8];
    } seed = {.info = {.entropy_count = 8 * sizeof seed.words, .buf_size = sizeof seed.words}};
    for (int at = 0; at < 8; at++) {
        unsigned char fine = 0;
        for (int tries = 0; tries < 10 && !fine; tries++) __asm__ volatile("rdrand %0; setc %1" : "=r"(seed.words[at]), "=qm"(fine));
        if (!fine) print("warm: this CPU has no random numbers\n");
    }
    memmove(seed.info.buf, seed.words, sizeof seed.words);
    mknod("/warm-random", S_IFCHR | 0600, makedev(1, 9));
    int fd = open("/warm-random", O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &seed) != 0 || ioctl(fd, RNDRESEEDCRNG) != 0) print("warm: no new random numbers\n");
    close(fd);
    unlink("/warm-random");
}

static int clock_register(int number) {
    outb(number, 0x70);
    return inb(0x71);
}

static int clock_field(int number) {
    int value = clock_register(number);
    return clock_register(0x0b) & 4 ? value : (value >> 4) * 10 + (value & 15); /* binary, or two decimal digits */
}

/* The kernel's clock stood still since it was saved; the one on the board did not. */
static void set_clock(void) {
    struct tm read = {0}, again = {.tm_sec = -1};
    while (read.tm_sec != again.tm_sec) { /* it may turn while it is read */
        again = read;
        while (clock_register(0x0a) & 0x80) {
        }
        read = (struct tm){.tm_sec = clock_field(0), .tm_min = clock_field(2), .tm_hour = clock_field(4),
                           .tm_mday = clock_field(7), .tm_mon = clock_field(8) - 1, .tm_year = clock_field(9) + 100};
    }
    struct timeval now = {.tv_sec = timegm(&read)};
    if (settimeofday(&now, NULL) != 0) print("warm: the clock can't be set\n");
}

/* How fast the CPU's timer runs the kernel measures once, as it boots, and on a busy host it can be wrong by more than ten times:
 * every sleep in every machine from this memory would then be as much too long. The clock is right, so it shows that. */
static int is_timer_right(void) {
    for (int tries = 0; tries < 40; tries++) { /* the host may be busy now, too */
        struct timespec before, after;
        clock_gettime(CLOCK_MONOTONIC, &before);
        usleep(20000);
        clock_gettime(CLOCK_MONOTONIC, &after);
        if ((after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec < 30000000L) return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    char said[8];
    (void)argc;
    if (iopl(3) != 0) return 1;
    if (!is_timer_right()) print("warm: the timer is wrong\n");
    print("warm: waits\n");
    while (ask(said, sizeof said) == 0 || strcmp(said, "wait") == 0) usleep(10000);
    differ();
    set_clock();
    unlink("/warm-barrier");
    execv("/init", argv);
    print("warm: no /init\n");
    return 1;
}
