/* NICs and who asks for their addresses: /run/nic.NAME is there while one has a DHCP client, with its pid in it. */
#pragma once
#include "lease.h"

#include <poll.h>

enum { MOST_NICS = 64, END_MS = 2000, CARRIER_MS = 60000 };

struct nics {
    int count;
    char names[MOST_NICS][IFNAMSIZ];
};

/* Those whose names stand in the folder, behind the prefix. */
static struct nics list_nics(const char *folder, const char *prefix) {
    struct nics found = {0};
    size_t length = strlen(prefix);
    DIR *entries = opendir(folder);
    for (struct dirent *entry; entries && found.count < MOST_NICS && (entry = readdir(entries));)
        if (strncmp(entry->d_name, prefix, length) == 0 && is_nic(entry->d_name + length))
            snprintf(found.names[found.count++], IFNAMSIZ, "%.*s", IFNAMSIZ - 1, entry->d_name + length);
    if (entries) closedir(entries);
    return found;
}

static int is_there(const char *format, const char *nic) {
    char path[64];
    snprintf(path, sizeof path, format, nic);
    return access(path, F_OK) == 0;
}

static void say_nothing(void) {
    int nowhere = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int i = 0; nowhere >= 0 && i < 3; i++) dup2(nowhere, i);
}

/* Its pid stands there before it runs, so that it can be ended at any time. */
static void become_client(const char *nic) {
    char pid_file[64], pid[16], name[80] = "hostname:", self[256];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    self[length > 0 ? length : 0] = 0;
    snprintf(pid_file, sizeof pid_file, "/run/nic.%s/pid", nic);
    snprintf(pid, sizeof pid, "%d\n", getpid());
    write_file(pid_file, pid, strlen(pid));
    gethostname(name + strlen(name), sizeof name - strlen(name) - 1);
    say_nothing();
    signal(SIGCHLD, SIG_DFL);
    execlp("udhcpc", "udhcpc", "-f", "-i", nic, "-p", pid_file, "-s", self, "-x", name, "-O", "mtu", "-t", "4", "-T", "1", "-A", "2", NULL);
    _exit(127);
}

/* Once: a second client would take the address away again for a moment. */
static void add_nic(const char *nic) {
    char folder[64];
    snprintf(folder, sizeof folder, "/run/nic.%s", nic);
    if (mkdir(folder, 0755) != 0) return;
    if (!bring_up(nic)) log_failure("link", nic);
    if (fork() == 0) become_client(nic);
}

/* With the lease that it may be applying just now: nothing of it comes afterwards. Not another process that got its number. */
static void end_client(pid_t pid) {
    char path[32], name[20];
    struct pollfd client = {.fd = syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};
    snprintf(path, sizeof path, "/proc/%d/comm", pid);
    read_file(path, name, sizeof name);
    if (strcmp(name, "udhcpc\n") != 0 && strcmp(name, "weft-devices\n") != 0) pid = 0;
    if (pid) kill(pid, SIGTERM);
    if (pid && client.fd >= 0 && poll(&client, 1, END_MS) == 0) kill(pid, SIGKILL);
    if (client.fd >= 0) close(client.fd);
}

static void remove_nic(const char *nic) {
    char path[64], pid[16];
    snprintf(path, sizeof path, "/run/nic.%s/pid", nic);
    if (read_file(path, pid, sizeof pid) > 0 && atoi(pid) > 1) end_client(atoi(pid));
    unlink(path);
    snprintf(path, sizeof path, "/run/nic.%s", nic);
    rmdir(path);
    snprintf(path, sizeof path, "/run/resolv.%s", nic);
    unlink(path);
}

static int has_carrier(const char *nic) {
    char path[64], carrier[4];
    snprintf(path, sizeof path, "/sys/class/net/%s/carrier", nic);
    return read_file(path, carrier, sizeof carrier) > 0 && *carrier == '1';
}

/* Each once it has a carrier, or a minute later. */
static void add_connected(struct nics *nics) {
    for (long end = milliseconds() + CARRIER_MS; nics->count > 0; usleep(50000))
        for (int i = nics->count - 1; i >= 0; i--) {
            if (!has_carrier(nics->names[i]) && milliseconds() < end) continue;
            add_nic(nics->names[i]);
            memmove(nics->names[i], nics->names[--nics->count], IFNAMSIZ);
        }
}

/* The machine goes on as another one than it was saved as, with other MACs and another name: its leases are its twin's. Its NICs have a
 * carrier again once its host has heard that this is done; then they ask for their own. */
static int renew_leases(void) {
    struct nics nics = list_nics("/run", "nic.");
    int line = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    for (int i = 0; i < nics.count; i++) {
        int link = if_nametoindex(nics.names[i]);
        remove_nic(nics.names[i]);
        if (link) flush_addresses(line, link);
    }
    pid_t later = fork();
    if (later != 0) return later < 0;
    say_nothing();
    setsid();
    add_connected(&nics);
    return 0;
}
