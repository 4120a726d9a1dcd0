/* What the tiny image does about its devices, in one process for as long as the guest runs: NICs ask for their addresses, CPUs are used,
 * those that are there at the start and those that come later. It starts nothing else than a DHCP client for each NIC and, only if there
 * is a seed disk or something in start.d, the script /etc/rc: on an emulated CPU each program costs more than all of this.
 *
 * That is without arguments. udhcpc calls it with a word (lease.h), weft's agent by its name "renewed" (nics.h).
 */
#include "nics.h"

#include <linux/netlink.h>
#include <sys/inotify.h>

#define TRIED "/run/network-tried" /* commands that are sent to the guest wait for it, so that they find a network */

enum { TRY_MS = 3000 };

static struct nics awaited; /* that were there at the start and have no lease yet */

static void use_cpu(const char *path) {
    char online[4];
    if (read_file(path, online, sizeof online) > 0 && *online == '0' && !write_file(path, "1", 1)) log_failure("use", path);
}

static void use_cpus(void) {
    DIR *cpus = opendir("/sys/devices/system/cpu");
    for (struct dirent *entry; cpus && (entry = readdir(cpus));) {
        char path[300];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/%s/online", entry->d_name);
        if (strncmp(entry->d_name, "cpu", 3) == 0 && strspn(entry->d_name + 3, "0123456789") > 0) use_cpu(path);
    }
    if (cpus) closedir(cpus);
}

/* All that is there: at the start, and after events that nobody could hold. */
static void look_around(void) {
    struct nics known = list_nics("/run", "nic."), present = list_nics("/sys/class/net", "");
    for (int i = 0; i < known.count; i++)
        if (!is_there("/sys/class/net/%s", known.names[i])) remove_nic(known.names[i]);
    for (int i = 0; i < present.count; i++) add_nic(present.names[i]);
    use_cpus();
}

static int listen_to_kernel(void) {
    struct sockaddr_nl all = {.nl_family = AF_NETLINK, .nl_groups = 1};
    int line = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT), bytes = 1 << 20;
    if (line < 0 || bind(line, (struct sockaddr *)&all, sizeof all) != 0) log_failure("listen to", "the kernel");
    setsockopt(line, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
    return line;
}

/* ACTION@PATH and NAME=VALUE, each with a NUL. */
static void take_event(const char *event, size_t size) {
    const char *action = "", *subsystem = "", *interface = "", *path = "";
    for (const char *at = event; at < event + size; at += strlen(at) + 1) {
        if (strncmp(at, "ACTION=", 7) == 0) action = at + 7;
        if (strncmp(at, "SUBSYSTEM=", 10) == 0) subsystem = at + 10;
        if (strncmp(at, "INTERFACE=", 10) == 0) interface = at + 10;
        if (strncmp(at, "DEVPATH=", 8) == 0) path = at + 8;
    }
    int comes = strcmp(action, "add") == 0, goes = strcmp(action, "remove") == 0;
    if (strcmp(subsystem, "net") == 0 && is_nic(interface)) {
        if (comes) add_nic(interface);
        if (goes) remove_nic(interface);
    }
    if (strcmp(subsystem, "cpu") == 0 && comes) {
        char online[512];
        snprintf(online, sizeof online, "/sys%.480s/online", path);
        use_cpu(online);
    }
}

static void take_events(int line) {
    char event[8193];
    for (;;) {
        struct sockaddr_nl from = {0};
        socklen_t length = sizeof from;
        ssize_t n = recvfrom(line, event, sizeof event - 1, 0, (struct sockaddr *)&from, &length);
        if (n < 0 && errno == ENOBUFS) look_around();
        else if (n < 0 && errno != EINTR) return;
        if (n <= 0 || from.nl_pid != 0) continue; /* not from the kernel */
        event[n] = 0;
        take_event(event, n);
    }
}

/* Lets commands go once each NIC has its lease, or is gone, or had its time. */
static int have_tried(long end) {
    for (int i = awaited.count - 1; i >= 0; i--)
        if (is_there("/run/resolv.%s", awaited.names[i]) || !is_there("/run/nic.%s", awaited.names[i]))
            memmove(awaited.names[i], awaited.names[--awaited.count], IFNAMSIZ);
    if (awaited.count > 0 && milliseconds() < end) return 0;
    if (!write_file(TRIED, "", 0)) log_failure("write", TRIED);
    return 1;
}

static int has_seed(void) {
    DIR *blocks = opendir("/sys/block");
    int found = 0;
    for (struct dirent *entry; blocks && !found && (entry = readdir(blocks));) {
        char path[300], serial[32];
        snprintf(path, sizeof path, "/sys/block/%s/serial", entry->d_name);
        if (strncmp(entry->d_name, "vd", 2) != 0 || read_file(path, serial, sizeof serial) < 0) continue;
        serial[strcspn(serial, "\n")] = 0;
        found = strcmp(serial, "weft-seed") == 0;
    }
    if (blocks) closedir(blocks);
    return found;
}

static int has_programs(void) {
    DIR *programs = opendir("/etc/weft/start.d");
    int found = 0;
    for (struct dirent *entry; programs && !found && (entry = readdir(programs));) {
        char path[300];
        snprintf(path, sizeof path, "/etc/weft/start.d/%s", entry->d_name);
        found = *entry->d_name != '.' && access(path, X_OK) == 0;
    }
    if (programs) closedir(programs);
    return found;
}

static void run_script(void) {
    if (fork() != 0) return;
    signal(SIGCHLD, SIG_DFL);
    setsid();
    execl("/bin/sh", "sh", "/etc/rc", NULL);
    log_failure("run", "/etc/rc");
    _exit(127);
}

static _Noreturn void keep_devices(void) {
    struct pollfd heard[] = {{.fd = listen_to_kernel(), .events = POLLIN},
                             {.fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK), .events = POLLIN}};
    long end = milliseconds() + TRY_MS;
    signal(SIGCHLD, SIG_IGN); /* nobody asks how they ended */
    inotify_add_watch(heard[1].fd, "/run", IN_ALL_EVENTS);
    if (!bring_up("lo")) log_failure("link", "lo");
    look_around();
    awaited = list_nics("/run", "nic.");
    if (has_seed() || has_programs()) run_script();
    for (int waits = 1;;) {
        if (waits && have_tried(end)) close(heard[1].fd), heard[1].fd = -1, waits = 0;
        long left = end - milliseconds();
        char changes[4096];
        poll(heard, 2, !waits ? -1 : left > 0 ? (int)left : 0);
        if (heard[0].revents) take_events(heard[0].fd);
        if (waits && heard[1].revents && read(heard[1].fd, changes, sizeof changes) < 0) log_failure("watch", "/run");
    }
}

int main(int argc, char **argv) {
    const char *name = strrchr(argv[0], '/');
    if (strcmp(name ? name + 1 : argv[0], "renewed") == 0) return renew_leases();
    if (argc > 1) return take_lease(argv[1]);
    keep_devices();
}
