/* Preloaded into a process, keeps what a disk would still have after a power cut: at each fsync of a file its content, at each
   fsync of a folder its names. Both go to the folder in SYNCED, named after the inode; `cut.py` puts them together. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static void keep_content(int file, ino_t inode) {
    char from[64], to[4096], bytes[65536];
    snprintf(from, sizeof from, "/proc/self/fd/%d", file);
    snprintf(to, sizeof to, "%s/file-%lu", getenv("SYNCED"), (unsigned long)inode);
    int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ssize_t count;
    if (in < 0 || out < 0) abort();
    while ((count = read(in, bytes, sizeof bytes)) > 0)
        if (write(out, bytes, count) != count) abort();
    close(in);
    close(out);
}

static void keep_names(int folder, ino_t inode) {
    char from[64], to[4096];
    snprintf(from, sizeof from, "/proc/self/fd/%d", folder);
    snprintf(to, sizeof to, "%s/folder-%lu", getenv("SYNCED"), (unsigned long)inode);
    DIR *names = opendir(from);
    FILE *out = fopen(to, "we");
    struct dirent *name;
    if (!names || !out) abort();
    while ((name = readdir(names)))
        if (name->d_type == DT_REG) fprintf(out, "%lu %s\n", (unsigned long)name->d_ino, name->d_name);
    closedir(names);
    if (fclose(out)) abort();
}

static int sync_and_keep(const char *call, int file) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, call);
    struct stat known;
    int result = real(file);
    if (result == 0 && getenv("SYNCED") && fstat(file, &known) == 0) {
        if (S_ISREG(known.st_mode)) keep_content(file, known.st_ino);
        if (S_ISDIR(known.st_mode)) keep_names(file, known.st_ino);
    }
    return result;
}

int fsync(int file) { return sync_and_keep("fsync", file); }
int fdatasync(int file) { return sync_and_keep("fdatasync", file); }
