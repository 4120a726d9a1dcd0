/* What both machines made of a container's image are put together from (init.c, vm.c) besides: their disks, by serial, and NICs. */
#include "../machine.h"

#include <arpa/inet.h>
#include <grp.h>
#include <linux/capability.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sysmacros.h>

static const char *const first_modules[] = {"virtio_blk", "virtio_console", NULL};
static const char *const more_modules[] = {"failover", "net_failover", "virtio_net", NULL};
static const char *const late_modules[] = {"virtio-rng", "virtio_balloon", NULL};

static int find_disk(const char *serial, char *device, size_t size) {
    for (int attempt = 0; attempt < 1000; attempt++, usleep(10000)) {
        DIR *blocks = opendir("/sys/block");
        for (struct dirent *entry; blocks && (entry = readdir(blocks));) {
            char path[300], found[32];
            if (strncmp(entry->d_name, "vd", 2) != 0) continue;
            snprintf(path, sizeof path, "/sys/block/%s/serial", entry->d_name);
            if (read_file(path, found, sizeof found) < 0) continue;
            found[strcspn(found, "\n")] = 0;
            if (strcmp(found, serial) != 0) continue;
            snprintf(device, size, "/dev/%.32s", entry->d_name);
            closedir(blocks);
            return 1;
        }
        if (blocks) closedir(blocks);
    }
    return 0;
}

static void set_address(int fd, struct ifreq *request, unsigned long what, in_addr_t address) {
    struct sockaddr_in *place = (struct sockaddr_in *)&request->ifr_addr;
    *place = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = address};
    if (ioctl(fd, what, request) != 0) log_failure("address of", request->ifr_name);
}

static void bring_up(int fd, const char *name) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    ioctl(fd, SIOCGIFFLAGS, &request);
    request.ifr_flags |= IFF_UP;
    if (ioctl(fd, SIOCSIFFLAGS, &request) != 0) log_failure("link", name);
}

static int find_link(const char *mac, char *name, size_t size) {
    int found = 0;
    DIR *links = opendir("/sys/class/net");
    for (struct dirent *entry; links && !found && (entry = readdir(links));) {
        char path[300], address[32];
        snprintf(path, sizeof path, "/sys/class/net/%s/address", entry->d_name);
        found = *entry->d_name != '.' && read_file(path, address, sizeof address) > 0 && !strncmp(address, mac, 17);
        if (found) snprintf(name, size, "%.15s", entry->d_name);
    }
    if (links) closedir(links);
    return found;
}

/* MAC ADDRESS PREFIX GATEWAY|- MTU */
static void set_up_nic(int fd, const char *nic) {
    char mac[20], address[20], gateway[20], name[16];
    int prefix, mtu;
    if (sscanf(nic, "%17s %15s %d %15s %d", mac, address, &prefix, gateway, &mtu) != 5) return log_failure("nic", nic);
    if (!find_link(mac, name, sizeof name)) return log_failure("nic", mac);
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    request.ifr_mtu = mtu;
    if (ioctl(fd, SIOCSIFMTU, &request) != 0) log_failure("mtu of", name);
    set_address(fd, &request, SIOCSIFADDR, inet_addr(address));
    set_address(fd, &request, SIOCSIFNETMASK, htonl(prefix ? ~0u << (32 - prefix) : 0));
    bring_up(fd, name);
    if (*gateway == '-') return;
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    ((struct sockaddr_in *)&route.rt_dst)->sin_family = AF_INET;
    ((struct sockaddr_in *)&route.rt_genmask)->sin_family = AF_INET;
    *(struct sockaddr_in *)&route.rt_gateway = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(gateway)};
    if (ioctl(fd, SIOCADDRT, &route) != 0) log_failure("route via", gateway);
}

static pid_t grower; /* who is growing the root's file system; 0: nobody (any more) */

/* The root's file system to its disk's size, and the modules that can wait: beside what goes on. */
static void grow_root(const char *device, const char *place) {
    int disk = open(device, O_RDONLY | O_CLOEXEC), root = open(place, O_RDONLY | O_CLOEXEC);
    if ((grower = fork()) == 0) {
        grow(disk, root, device);
        if (fork() == 0) load_modules(late_modules);
        _exit(0);
    }
    close(disk), close(root);
}

/* A machine that is off amid the growing has a file system that its next run may fail on, in the kernel. */
static void await_grown(void) {
    while (grower > 0 && waitpid(grower, NULL, 0) < 0 && errno == EINTR) {
    }
    grower = 0;
}
