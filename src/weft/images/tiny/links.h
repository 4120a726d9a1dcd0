/* What the kernel is asked about links, their addresses and their way out: ioctls, and rtnetlink where those can't say it. */
#pragma once
#include "../machine.h"

#include <arpa/inet.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>

enum { MOST_ADDRESSES = 64, MAIN_METRIC = 100 };

struct address {
    unsigned char family, prefix, bytes[16];
};

struct question {
    struct nlmsghdr head;
    union {
        struct ifaddrmsg address;
        struct rtmsg route;
    };
    char attributes[128];
};

static size_t address_size(int family) { return family == AF_INET ? 4 : 16; }

/* eth0 and so on: no other link is weft's, and nothing else becomes part of a path. */
static int is_nic(const char *name) {
    size_t digits = strncmp(name, "eth", 3) == 0 ? strspn(name + 3, "0123456789") : 0;
    return digits > 0 && digits < 6 && name[3 + digits] == 0;
}

static int bring_up(const char *name) {
    struct ifreq request = {0};
    int line = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    int fine = ioctl(line, SIOCGIFFLAGS, &request) == 0;
    request.ifr_flags |= IFF_UP;
    fine = fine && ioctl(line, SIOCSIFFLAGS, &request) == 0;
    if (line >= 0) close(line);
    return fine;
}

static int set_mtu(const char *name, int mtu) {
    struct ifreq request = {.ifr_mtu = mtu};
    int line = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
    int fine = ioctl(line, SIOCSIFMTU, &request) == 0;
    if (line >= 0) close(line);
    return fine;
}

static void add_attribute(struct question *question, int type, const void *data, size_t size) {
    struct rtattr *attribute = (struct rtattr *)((char *)question + NLMSG_ALIGN(question->head.nlmsg_len));
    attribute->rta_type = type, attribute->rta_len = RTA_LENGTH(size);
    memcpy(RTA_DATA(attribute), data, size);
    question->head.nlmsg_len = NLMSG_ALIGN(question->head.nlmsg_len) + RTA_ALIGN(attribute->rta_len);
}

static struct question ask_about_addresses(int type, int flags) {
    return (struct question){.head = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct ifaddrmsg)), .nlmsg_type = type,
                                      .nlmsg_flags = NLM_F_REQUEST | flags}};
}

static struct question ask_about_routes(int type, int flags) {
    return (struct question){.head = {.nlmsg_len = NLMSG_LENGTH(sizeof(struct rtmsg)), .nlmsg_type = type,
                                      .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags},
                             .route = {.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN}};
}

static int send_question(int line, const struct question *question) {
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    return sendto(line, question, question->head.nlmsg_len, 0, (struct sockaddr *)&kernel, sizeof kernel) >= 0;
}

/* Only from the kernel; -1: nothing more comes. */
static ssize_t read_answer(int line, void *data, size_t size) {
    for (;;) {
        struct sockaddr_nl from = {0};
        socklen_t length = sizeof from;
        ssize_t n = recvfrom(line, data, size, 0, (struct sockaddr *)&from, &length);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return -1;
        if (from.nl_pid == 0) return n;
    }
}

/* Whether the kernel did what it was asked; errno says why not. */
static int settle(int line, const struct question *question) {
    char data[1024] __attribute__((aligned(NLMSG_ALIGNTO)));
    ssize_t n = send_question(line, question) ? read_answer(line, data, sizeof data) : -1;
    const struct nlmsghdr *head = (struct nlmsghdr *)data;
    if (n < 0 || !NLMSG_OK(head, (size_t)n) || head->nlmsg_type != NLMSG_ERROR) return 0;
    errno = -((struct nlmsgerr *)NLMSG_DATA(head))->error;
    return errno == 0;
}

/* Of one message of the kernel's list; 0: it is another link's. */
static int read_address(const struct nlmsghdr *head, int link, struct address *found) {
    const struct ifaddrmsg *about = NLMSG_DATA(head);
    const void *bytes = NULL;
    if ((int)about->ifa_index != link || (about->ifa_family != AF_INET && about->ifa_family != AF_INET6)) return 0;
    size_t size = address_size(about->ifa_family), left = IFA_PAYLOAD(head);
    for (const struct rtattr *at = IFA_RTA(about); RTA_OK(at, left); at = RTA_NEXT(at, left)) {
        if (RTA_PAYLOAD(at) < size || (at->rta_type != IFA_LOCAL && (at->rta_type != IFA_ADDRESS || bytes))) continue;
        bytes = RTA_DATA(at); /* IFA_ADDRESS is the other end's where there is an IFA_LOCAL */
    }
    if (!bytes) return 0;
    *found = (struct address){.family = about->ifa_family, .prefix = about->ifa_prefixlen};
    memcpy(found->bytes, bytes, size);
    return 1;
}

/* How many the link has; those beyond MOST_ADDRESSES are left out. */
static int list_addresses(int line, int link, struct address *found) {
    static char data[1 << 15] __attribute__((aligned(NLMSG_ALIGNTO)));
    struct question question = ask_about_addresses(RTM_GETADDR, NLM_F_DUMP);
    int count = 0, ended = !send_question(line, &question);
    while (!ended) {
        ssize_t n = read_answer(line, data, sizeof data);
        size_t left = n > 0 ? (size_t)n : 0;
        ended = n < 0;
        for (const struct nlmsghdr *head = (struct nlmsghdr *)data; !ended && NLMSG_OK(head, left); head = NLMSG_NEXT(head, left)) {
            ended = head->nlmsg_type == NLMSG_DONE || head->nlmsg_type == NLMSG_ERROR;
            if (head->nlmsg_type == RTM_NEWADDR && count < MOST_ADDRESSES) count += read_address(head, link, found + count);
        }
    }
    return count;
}

static void flush_addresses(int line, int link) {
    struct address found[MOST_ADDRESSES];
    for (int rounds = 0, count; rounds < 16 && (count = list_addresses(line, link, found)) > 0; rounds++)
        for (int i = 0; i < count; i++) {
            struct question question = ask_about_addresses(RTM_DELADDR, NLM_F_ACK);
            question.address.ifa_family = found[i].family, question.address.ifa_prefixlen = found[i].prefix;
            question.address.ifa_index = link;
            add_attribute(&question, IFA_LOCAL, found[i].bytes, address_size(found[i].family));
            settle(line, &question); /* a second one goes with its first */
        }
}

static int has_address(int line, int link, struct in_addr address, int prefix) {
    struct address found[MOST_ADDRESSES];
    int count = list_addresses(line, link, found), has = 0;
    for (int i = 0; i < count; i++)
        has |= found[i].family == AF_INET && found[i].prefix == prefix && memcmp(found[i].bytes, &address, sizeof address) == 0;
    return has;
}

static int add_address(int line, int link, struct in_addr address, int prefix) {
    struct question question = ask_about_addresses(RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
    question.address.ifa_family = AF_INET, question.address.ifa_prefixlen = prefix, question.address.ifa_index = link;
    add_attribute(&question, IFA_LOCAL, &address, sizeof address);
    add_attribute(&question, IFA_ADDRESS, &address, sizeof address);
    uint32_t broadcast = address.s_addr | htonl(prefix ? (1ull << (32 - prefix)) - 1 : UINT32_MAX);
    if (prefix <= 30) add_attribute(&question, IFA_BROADCAST, &broadcast, sizeof broadcast);
    return settle(line, &question);
}

static void remove_ways_out(int line, int link) {
    struct question question = ask_about_routes(RTM_DELROUTE, 0);
    question.route.rtm_scope = RT_SCOPE_NOWHERE; /* any */
    add_attribute(&question, RTA_OIF, &link, sizeof link);
    for (int i = 0; i < 1000 && settle(line, &question); i++) {
    }
}

static int add_way_out(int line, int link, struct in_addr gateway, uint32_t metric) {
    struct question question = ask_about_routes(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL);
    question.route.rtm_protocol = RTPROT_BOOT, question.route.rtm_type = RTN_UNICAST;
    add_attribute(&question, RTA_GATEWAY, &gateway, sizeof gateway);
    add_attribute(&question, RTA_OIF, &link, sizeof link);
    add_attribute(&question, RTA_PRIORITY, &metric, sizeof metric);
    return settle(line, &question);
}
