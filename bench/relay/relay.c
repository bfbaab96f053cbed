// The floor under every proxy: a raw TCP relay that copies bytes both ways and reads none of them.
// Each connection is pinned to one worker, in turn. One thread, one epoll loop, 16 KiB reads, no splice.
//
//   relay PORT WORKER_PORT...
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FDS = 32768, CHUNK = 16 * 1024 };

// What waits to be written to this socket; while something does, its peer is not read.
struct half { int peer; size_t len, done; char *waiting; };

static struct half halves[MAX_FDS];
static int epfd;

static void watch(int op, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epfd, op, fd, &event)) err(1, "epoll_ctl");
}

static struct sockaddr_in loopback(int port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

static void drop(int fd) {
    int pair[2] = {fd, halves[fd].peer};
    for (int i = 0; i < 2; i++) {
        free(halves[pair[i]].waiting);
        halves[pair[i]] = (struct half){.peer = -1};
        close(pair[i]);
    }
}

static void on_accept(int listener, int worker) {
    int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK), on = 1;
    if (client < 0) return;
    struct sockaddr_in address = loopback(worker);
    int server = socket(AF_INET, SOCK_STREAM, 0);
    if (server < 0 || server >= MAX_FDS || client >= MAX_FDS
        || connect(server, (struct sockaddr *)&address, sizeof address)) {
        close(client);
        if (server >= 0) close(server);
        return;
    }
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    halves[client] = (struct half){.peer = server};
    halves[server] = (struct half){.peer = client};
    watch(EPOLL_CTL_ADD, client, EPOLLIN);
    watch(EPOLL_CTL_ADD, server, EPOLLIN);
}

static void on_readable(int fd) {
    static char chunk[CHUNK];
    int peer = halves[fd].peer;
    ssize_t got = recv(fd, chunk, CHUNK, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) { drop(fd); return; }
    ssize_t sent = send(peer, chunk, got, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent == got) return;
    if (sent < 0 && errno != EAGAIN) { drop(fd); return; }
    struct half *out = &halves[peer];
    out->len = got - (sent > 0 ? sent : 0), out->done = 0;
    out->waiting = malloc(out->len);
    memcpy(out->waiting, chunk + got - out->len, out->len);
    watch(EPOLL_CTL_MOD, fd, 0);
    watch(EPOLL_CTL_MOD, peer, EPOLLOUT);
}

static void on_writable(int fd) {
    struct half *out = &halves[fd];
    ssize_t sent = send(fd, out->waiting + out->done, out->len - out->done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) { drop(fd); return; }
    if (sent > 0) out->done += sent;
    if (out->done < out->len) return;
    free(out->waiting);
    out->waiting = NULL;
    watch(EPOLL_CTL_MOD, fd, EPOLLIN);
    watch(EPOLL_CTL_MOD, out->peer, EPOLLIN);
}

int main(int argc, char **argv) {
    struct epoll_event events[256];
    if (argc < 3) errx(2, "usage: relay PORT WORKER_PORT...");
    struct sockaddr_in address = loopback(atoi(argv[1]));
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1, next = 0;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096))
        err(1, "port %s", argv[1]);
    epfd = epoll_create1(0);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
    for (;;) {
        int n = epoll_wait(epfd, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) on_accept(listener, atoi(argv[2 + next++ % (argc - 2)]));
            else if (halves[fd].peer < 0) continue; // dropped with its peer, earlier in this batch
            else if (events[i].events & EPOLLOUT) on_writable(fd);
            else on_readable(fd);
        }
    }
}
