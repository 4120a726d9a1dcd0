/* What udhcpc calls with the lease in variables (ip, mask, mtu, router, domain, dns): applies it to $interface.
 *
 * They come from any machine that answers on the network: numbers and addresses are taken only whole and well formed, a domain only if
 * it is one, and of everything at most so much.
 */
#pragma once
#include "links.h"

#include <sys/file.h>

enum { RESOLVER = 1024, ALL_RESOLVERS = 1 << 14, MOST_SERVERS = 8 };

struct lease {
    struct in_addr address, gateway;
    int prefix, mtu, has_gateway;
    char resolver[RESOLVER]; /* lines of /etc/resolv.conf */
};

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* -1: it isn't one, or is more than `most`. */
static int parse_number(const char *text, int most) {
    size_t digits = strspn(text, "0123456789");
    return digits > 0 && digits < 6 && !text[digits] && atoi(text) <= most ? atoi(text) : -1;
}

/* The next of the words at *at, which goes on behind it; one that is too long comes as "". 0: there is none left. */
static int next_word(const char **at, char *word, size_t size) {
    *at += strspn(*at, " \t\n");
    size_t length = strcspn(*at, " \t\n");
    snprintf(word, size, "%.*s", length < size ? (int)length : 0, *at);
    *at += length;
    return length > 0;
}

/* That a link may have: not one of "this network", of the loopback, or of many. */
static int is_own_address(struct in_addr address) {
    unsigned first = ntohl(address.s_addr) >> 24;
    return first != 0 && first != 127 && first < 224;
}

/* One, or several with spaces between them. */
static int is_domain(const char *text) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._ ";
    size_t length = strlen(text);
    return length > 0 && length < 256 && strspn(text, letters) == length;
}

static void list_resolver(char *lines, const char *domain, const char *servers) {
    char word[INET_ADDRSTRLEN];
    struct in_addr server;
    size_t length = 0;
    *lines = 0;
    if (is_domain(domain)) length += snprintf(lines, RESOLVER, "search %s\n", domain);
    for (int count = 0; count < MOST_SERVERS && next_word(&servers, word, sizeof word);)
        if (inet_pton(AF_INET, word, &server) == 1) length += snprintf(lines + length, RESOLVER - length, "nameserver %s\n", word), count++;
}

static int read_lease(struct lease *lease) {
    char word[INET_ADDRSTRLEN];
    const char *routers = variable("router");
    *lease = (struct lease){.prefix = parse_number(variable("mask"), 32), .mtu = parse_number(variable("mtu"), 65535)};
    if (inet_pton(AF_INET, variable("ip"), &lease->address) != 1 || !is_own_address(lease->address) || lease->prefix < 0) return 0;
    lease->has_gateway = next_word(&routers, word, sizeof word) && inet_pton(AF_INET, word, &lease->gateway) == 1;
    list_resolver(lease->resolver, variable("domain"), variable("dns"));
    return 1;
}

/* Each line of `text` that isn't there yet, as long as it fits. */
static void add_lines(char *all, const char *text) {
    for (size_t length; *text; text += length) {
        length = strcspn(text, "\n");
        int known = 0;
        for (const char *at = all; *at && !known; at += strcspn(at, "\n") + 1)
            known = strcspn(at, "\n") == length && strncmp(at, text, length) == 0;
        size_t end = strlen(all);
        if (!known && length && end + length + 2 <= ALL_RESOLVERS) snprintf(all + end, ALL_RESOLVERS - end, "%.*s\n", (int)length, text);
        length += text[length] == '\n';
    }
}

static int is_resolver(const struct dirent *entry) { return strncmp(entry->d_name, "resolv.eth", 10) == 0; }

/* All NICs' lines in the order of their files, with `own` as those of the file `name`. */
static void merge_resolvers(char *all, const char *name, const char *own) {
    struct dirent **found;
    int count = scandir("/run", &found, is_resolver, alphasort), placed = 0;
    *all = 0;
    for (int i = 0; i < count; i++) {
        char path[300], lines[RESOLVER];
        int order = strcmp(found[i]->d_name, name);
        if (order >= 0 && !placed) add_lines(all, own), placed = 1;
        snprintf(path, sizeof path, "/run/%s", found[i]->d_name);
        if (order != 0 && read_file(path, lines, sizeof lines) > 0) add_lines(all, lines);
        free(found[i]);
    }
    if (count >= 0) free(found);
    if (!placed) add_lines(all, own);
}

/* /run/resolv.NIC comes last, whole: who waits for it finds the servers in /etc/resolv.conf. One NIC's lease at a time. */
static void keep_resolver(const char *nic, const char *own) {
    static char all[ALL_RESOLVERS];
    char name[32], path[40];
    int fd = open("/etc/resolv.conf", O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd >= 0) flock(fd, LOCK_EX);
    snprintf(name, sizeof name, "resolv.%s", nic);
    snprintf(path, sizeof path, "/run/%s", name);
    merge_resolvers(all, name, own);
    ssize_t length = strlen(all);
    if (fd < 0 || ftruncate(fd, 0) != 0 || write(fd, all, length) != length) log_failure("write", "/etc/resolv.conf");
    if (!write_file("/run/resolv.new", own, strlen(own)) || rename("/run/resolv.new", path) != 0) log_failure("write", path);
    if (fd >= 0) close(fd);
}

static void print_on_console(const char *nic, const char *text) {
    int console = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (console < 0) return;
    dprintf(console, "%s: %s\n", nic, text);
    close(console);
}

static void use_lease(int line, const char *nic, int link, const struct lease *lease) {
    char address[INET_ADDRSTRLEN], shown[INET_ADDRSTRLEN + 4];
    if (lease->mtu >= 0 && !set_mtu(nic, lease->mtu)) log_failure("mtu", nic);
    if (!has_address(line, link, lease->address, lease->prefix)) { /* the same at a renewal: connections go on */
        flush_addresses(line, link);
        if (!add_address(line, link, lease->address, lease->prefix)) log_failure("address", nic);
    }
    remove_ways_out(line, link);
    if (lease->has_gateway && !add_way_out(line, link, lease->gateway, MAIN_METRIC + atoi(nic + 3))) log_failure("route", nic);
    keep_resolver(nic, lease->resolver);
    inet_ntop(AF_INET, &lease->address, address, sizeof address);
    snprintf(shown, sizeof shown, "%s/%d", address, lease->prefix);
    print_on_console(nic, shown);
}

/* What happened is udhcpc's word: deconfig, bound, renew, leasefail or nak. */
static int take_lease(const char *what) {
    const char *nic = variable("interface");
    int link = is_nic(nic) ? (int)if_nametoindex(nic) : 0, line = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    struct lease lease;
    if (!link || line < 0) return 1;
    if (strcmp(what, "deconfig") == 0) {
        flush_addresses(line, link);
        return !bring_up(nic);
    }
    if (strcmp(what, "bound") != 0 && strcmp(what, "renew") != 0) return 0;
    if (!read_lease(&lease)) {
        print_on_console(nic, "a lease that makes no sense");
        return 1;
    }
    use_lease(line, nic, link, &lease);
    return 0;
}
