/* Runs in a guest: says back what it is told, on a TCP port, to all that connect.
 *
 * echo PORT */
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 7)};
    int door = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(door, (struct sockaddr *)&here, sizeof here) || listen(door, 128)) return 1;
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int link = accept(door, 0, 0);
        if (link < 0) continue;
        if (fork() == 0) {
            char said[4096];
            ssize_t count;
            close(door);
            while ((count = read(link, said, sizeof said)) > 0)
                if (write(link, said, count) != count) break;
            _exit(0);
        }
        close(link);
    }
}
