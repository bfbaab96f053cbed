// The worker behind every proxy: one epoll loop answering GETs on several ports with as little CPU as it can,
// so that the core it shares with the load generator is never the bottleneck.
//
//   worker PORT...      /large: 100 KiB   /echo: the request head it received   anything else: 30 bytes
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FDS = 32768, MAX_HEAD = 4096, MAX_PORTS = 16, LARGE = 100 * 1024 };

struct response { char bytes[LARGE + 256]; size_t len; };
struct conn { int port, len, last, blocked; const char *out; size_t left; char head[MAX_HEAD]; };

static struct response small[MAX_PORTS], large;
static struct conn conns[MAX_FDS];
static int listeners[MAX_PORTS], ports, epfd;

static void watch(int op, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epfd, op, fd, &event)) err(1, "epoll_ctl");
}

static void respond_with(struct response *r, const char *body, size_t len) {
    r->len = sprintf(r->bytes, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n\r\n", len);
    memcpy(r->bytes + r->len, body, len);
    r->len += len;
}

static void prepare(int port) {
    char body[64];
    int len = sprintf(body, "answered by the worker %05d.\n", port);
    respond_with(&small[ports], body, len);
}

static void listen_on(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) err(1, "port %d", port);
    prepare(port);
    listeners[ports++] = fd;
    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
}

static void flush(int fd, struct conn *c) {
    ssize_t sent = send(fd, c->out, c->left, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) { close(fd); return; }
    if (sent > 0) { c->out += sent; c->left -= sent; }
    int blocked = c->left > 0;
    if (blocked != c->blocked) watch(EPOLL_CTL_MOD, fd, blocked ? EPOLLOUT : EPOLLIN);
    c->blocked = blocked;
    if (!blocked && c->last) close(fd);
}

static void answer(int fd, struct conn *c) {
    static struct response echo;
    struct response *r = &small[c->port];
    if (!memcmp(c->head, "GET /large", 10)) r = &large;
    if (!memcmp(c->head, "GET /echo", 9)) respond_with(r = &echo, c->head, c->len);
    c->last = strcasestr(c->head, "\nconnection: close") || strstr(c->head, " HTTP/1.0\r\n");
    c->out = r->bytes, c->left = r->len, c->len = 0;
    flush(fd, c);
}

static void on_readable(int fd, struct conn *c) {
    ssize_t got = recv(fd, c->head + c->len, MAX_HEAD - 1 - c->len, 0);
    if (got <= 0) { close(fd); return; }
    c->len += got;
    c->head[c->len] = 0;
    if (c->len >= 4 && !memcmp(c->head + c->len - 4, "\r\n\r\n", 4)) answer(fd, c);
}

static void on_accept(int port) {
    int fd = accept4(listeners[port], NULL, NULL, SOCK_NONBLOCK), on = 1;
    if (fd < 0) return;
    if (fd >= MAX_FDS) { close(fd); return; }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    conns[fd].port = port, conns[fd].len = 0, conns[fd].blocked = 0;
    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
}

int main(int argc, char **argv) {
    static char body[LARGE];
    struct epoll_event events[256];
    if (argc < 2 || argc > MAX_PORTS + 1) errx(2, "usage: worker PORT...");
    epfd = epoll_create1(0);
    memset(body, 'x', sizeof body);
    respond_with(&large, body, sizeof body);
    for (int i = 1; i < argc; i++) listen_on(atoi(argv[i]));
    for (;;) {
        int n = epoll_wait(epfd, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd, port = 0;
            while (port < ports && listeners[port] != fd) port++;
            if (port < ports) on_accept(port);
            else if (events[i].events & EPOLLOUT) flush(fd, &conns[fd]);
            else on_readable(fd, &conns[fd]);
        }
    }
}
