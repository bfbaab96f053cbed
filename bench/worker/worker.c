// The worker behind every proxy: one epoll loop answering GETs on several ports with as little CPU as it can,
// so that the core it shares with the load generator is never the bottleneck.
//
//   worker PORT[:MICROS[:PERCENT]]...   /large: 100 KiB   /echo: the request head it received   anything else: 30 bytes
//
// With MICROS a port answers as a process with one thread does: one request after the other, each of which takes so
// long, and 15 times as long one time in 33. With PERCENT that grows by so much each second since GET /restart, which is
// answered at once. Such a port reports how busy it was in the last quarter of a second.
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
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 32768, MAX_HEAD = 4096, MAX_PORTS = 512, MAX_QUEUE = 4096, LARGE = 100 * 1024 };
enum { ONE_IN = 33, LONGER = 15 };

struct response { char bytes[512]; size_t len; };
struct conn { int port, len, last, blocked; unsigned born; const char *out; size_t left; char head[MAX_HEAD]; };
// A request that waits for its answer, unless its connection is another one by then.
struct waiting { int fd; unsigned born; long due; };
// One thread: what it takes for a request, when it is done with all it has, and how busy it was of late.
struct thread {
    long micros, percent, since, free_at, busy_us, measured_at, load;
    int first, count;
    struct waiting queue[MAX_QUEUE];
};

static struct response small[MAX_PORTS];
static struct { char bytes[LARGE + 256]; size_t len; } large;
static struct thread *threads[MAX_PORTS];
static struct conn conns[MAX_FDS];
static int listeners[MAX_PORTS], port_of[MAX_FDS], ports, epfd, timer;

static long now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

static void watch(int op, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epfd, op, fd, &event)) err(1, "epoll_ctl");
}

static size_t head_of(char *bytes, size_t len, const char *more) {
    return sprintf(bytes, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n%s\r\n", len, more);
}

static void prepare(int i, int port, const char *more) {
    char body[64];
    int len = sprintf(body, "answered by the worker %05d.\n", port);
    small[i].len = head_of(small[i].bytes, len, more);
    memcpy(small[i].bytes + small[i].len, body, len);
    small[i].len += len;
}

static void listen_on(const char *spec) {
    int port = atoi(spec), fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) err(1, "port %d", port);
    prepare(ports, port, "");
    const char *micros = strchr(spec, ':'), *percent = micros ? strchr(micros + 1, ':') : NULL;
    if (micros) {
        struct thread *t = threads[ports] = calloc(1, sizeof *t);
        if (!t) err(1, "memory");
        t->micros = atol(micros + 1), t->percent = percent ? atol(percent + 1) : 0;
        t->since = t->measured_at = now_us();
    }
    port_of[fd] = ports;
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
    c->out = small[c->port].bytes, c->left = small[c->port].len;
    if (!memcmp(c->head, "GET /large", 10)) c->out = large.bytes, c->left = large.len;
    if (!memcmp(c->head, "GET /echo", 9)) {
        static char bytes[MAX_HEAD + 256];
        size_t head = head_of(bytes, c->len, "");
        memcpy(bytes + head, c->head, c->len);
        c->out = bytes, c->left = head + c->len;
    }
    c->last = strcasestr(c->head, "\nconnection: close") || strstr(c->head, " HTTP/1.0\r\n");
    c->len = 0;
    flush(fd, c);
}

// The time until the first answer of all is due.
static void set_timer(void) {
    long first = 0;
    for (int i = 0; i < ports; i++) {
        struct thread *t = threads[i];
        if (t && t->count && (!first || t->queue[t->first].due < first)) first = t->queue[t->first].due;
    }
    struct itimerspec at = {.it_value = {first / 1000000, first % 1000000 * 1000}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static void measure(int i, struct thread *t, long now) {
    if (now - t->measured_at < 250000) return;
    long ahead = t->free_at > now ? t->free_at - now : 0; // promised, not worked off yet
    t->load = 100 * (t->busy_us - ahead) / (now - t->measured_at);
    t->busy_us = ahead, t->measured_at = now;
    char report[64];
    sprintf(report, "endpoint-load-metrics: TEXT cpu=%ld.%02ld\r\n", t->load / 100, t->load % 100);
    struct sockaddr_in address;
    socklen_t len = sizeof address;
    getsockname(listeners[i], (struct sockaddr *)&address, &len);
    prepare(i, ntohs(address.sin_port), report);
}

static void serve(int fd, struct conn *c) {
    struct thread *t = threads[c->port];
    if (t && !memcmp(c->head, "GET /restart", 12)) t->since = now_us();
    if (!t || !memcmp(c->head, "GET /restart", 12) || t->count == MAX_QUEUE) { answer(fd, c); return; }
    long now = now_us(), takes = t->micros * (random() % ONE_IN ? 1 : LONGER);
    takes += takes * t->percent * (now - t->since) / 100000000;
    t->free_at = (t->free_at > now ? t->free_at : now) + takes;
    t->busy_us += takes;
    t->queue[(t->first + t->count++) % MAX_QUEUE] = (struct waiting){fd, c->born, t->free_at};
    measure(c->port, t, now);
    if (t->count == 1) set_timer();
}

static void on_timer(void) {
    uint64_t expired;
    if (read(timer, &expired, sizeof expired) < 0) return;
    long now = now_us();
    for (int i = 0; i < ports; i++) {
        struct thread *t = threads[i];
        while (t && t->count && t->queue[t->first].due <= now) {
            struct waiting w = t->queue[t->first];
            t->first = (t->first + 1) % MAX_QUEUE, t->count--;
            if (conns[w.fd].born == w.born) answer(w.fd, &conns[w.fd]);
        }
    }
    set_timer();
}

static void on_readable(int fd, struct conn *c) {
    ssize_t got = recv(fd, c->head + c->len, MAX_HEAD - 1 - c->len, 0);
    if (got <= 0) { c->born++; close(fd); return; }
    c->len += got;
    c->head[c->len] = 0;
    if (c->len >= 4 && !memcmp(c->head + c->len - 4, "\r\n\r\n", 4)) serve(fd, c);
}

static void on_accept(int port) {
    int fd = accept4(listeners[port], NULL, NULL, SOCK_NONBLOCK), on = 1;
    if (fd < 0) return;
    if (fd >= MAX_FDS) { close(fd); return; }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    conns[fd].port = port, conns[fd].len = 0, conns[fd].blocked = 0, conns[fd].born++;
    port_of[fd] = -1;
    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
}

int main(int argc, char **argv) {
    struct epoll_event events[256];
    if (argc < 2 || argc > MAX_PORTS + 1) errx(2, "usage: worker PORT[:MICROS[:PERCENT]]...");
    epfd = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(EPOLL_CTL_ADD, timer, EPOLLIN);
    large.len = head_of(large.bytes, LARGE, "");
    memset(large.bytes + large.len, 'x', LARGE);
    large.len += LARGE;
    memset(port_of, -1, sizeof port_of);
    for (int i = 1; i < argc; i++) listen_on(argv[i]);
    for (;;) {
        int n = epoll_wait(epfd, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == timer) on_timer();
            else if (port_of[fd] >= 0) on_accept(port_of[fd]);
            else if (events[i].events & EPOLLOUT) flush(fd, &conns[fd]);
            else on_readable(fd, &conns[fd]);
        }
    }
}
