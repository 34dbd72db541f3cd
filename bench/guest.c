// SPDX-License-Identifier: MIT
/*
 * A model guest in C, a process of its own, for the benchmarks of the host: fast enough not to be what is measured.
 *
 * It shares memory by memfd and signals by eventfd, as QEMU does with the backend. What it knows of a ring is that
 * of Linux' guest drivers (drivers/hv/ring_buffer.c), not emulator/ring. Each packet that comes back is checked.
 *
 *   guest packets MEMFD PAGES BATCH TOTAL DOORBELL
 *       Send TOTAL requests of 64 bytes, BATCH to a store of `in`, and spin for the completions of each batch before
 *       the next. With BATCH 0 write whenever there is room, 32 packets at a time. DOORBELL is an eventfd, or -1: the
 *       host looks by itself.
 *   guest host MEMFD PAGES TOTAL
 *       Be the host for that: what two processes in C take.
 *   guest roundtrip MEMFD PAGES TOTAL DOORBELL INTERRUPT OFFSET
 *       Send a request, ring, sleep until the interrupt's eventfd is written, TOTAL times; print each time in ns. The rings begin
 *       OFFSET bytes into the memory.
 *   guest storage MEMFD PAGES DEPTH TOTAL DOORBELL BLOCKS OPCODE
 *       Initialise a storage controller, then have DEPTH requests of 4 KiB under way on LUN 0 until TOTAL are answered, at
 *       random on the first BLOCKS of 4 KiB; print the nanoseconds that took. The guest's buffers begin in the page after the rings.
 *   guest pingpong TOTAL
 *       Two processes that wake each other by two eventfds and do nothing else; print each time in ns.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define PAYLOAD 64u
#define IN_BAND 6u
#define COMPLETION 11u
#define FREE_RUNNING 32u

enum { IN, OUT, MASK, PENDING }; /* indices of the words of a control page */

struct descriptor {
    uint16_t type, offset8, length8, flags;
    uint64_t transaction;
};

struct ring {
    uint32_t *control;
    char *data;
    uint32_t size, position;
};

static void
die(const char *what)
{
    fprintf(stderr, "guest: %s\n", what);
    exit(1);
}

static uint32_t
load(const struct ring *ring, int word)
{
    return __atomic_load_n(&ring->control[word], __ATOMIC_ACQUIRE);
}

static void
store(struct ring *ring, int word, uint32_t value)
{
    __atomic_store_n(&ring->control[word], value, __ATOMIC_RELEASE);
}

static void
fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static void
relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Two rings lie behind each other: guest to host first. */
static struct ring
map_ring(int memfd, uint32_t pages, int second, int writer, off_t offset)
{
    size_t length = 2 * (size_t)pages * PAGE;
    char *base = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, offset);
    struct ring ring;

    if (base == MAP_FAILED) {
        die("cannot map the memory");
    }
    base += second ? (size_t)pages * PAGE : 0;
    ring.control = (uint32_t *)base;
    ring.data = base + PAGE;
    ring.size = (pages - 1) * PAGE;
    ring.position = load(&ring, writer ? IN : OUT);
    return ring;
}

static uint32_t
put(struct ring *ring, uint32_t at, const void *from, uint32_t length)
{
    uint32_t first = ring->size - at < length ? ring->size - at : length;

    memcpy(ring->data + at, from, first);
    memcpy(ring->data, (const char *)from + first, length - first);
    return (at + length) % ring->size;
}

static uint32_t
get(const struct ring *ring, uint32_t at, void *to, uint32_t length)
{
    uint32_t first = ring->size - at < length ? ring->size - at : length;

    memcpy(to, ring->data + at, first);
    memcpy((char *)to + first, ring->data, length - first);
    return (at + length) % ring->size;
}

static uint32_t
room(const struct ring *ring)
{
    return ring->size - (ring->position - load(ring, OUT) + ring->size) % ring->size;
}

static void
write_packet(struct ring *ring, uint16_t type, uint16_t flags, uint64_t transaction, uint32_t length)
{
    static const char payload[PAYLOAD] = "0123456789abcdef";
    struct descriptor descriptor = {type, 2, (uint16_t)(2 + length / 8), flags, transaction};
    uint32_t trailer[2] = {0, ring->position}, at;

    at = put(ring, ring->position, &descriptor, sizeof descriptor);
    at = put(ring, at, payload, length);
    ring->position = put(ring, at, trailer, sizeof trailer);
}

/* Show the reader what was written; true if it must be signalled. */
static int
publish(struct ring *ring, uint32_t before)
{
    store(ring, IN, ring->position);
    fence();
    return !load(ring, MASK) && load(ring, OUT) == before;
}

/* Take a packet off the ring; the space is released by the caller. */
static void
take(struct ring *ring, uint16_t type, uint64_t transaction)
{
    struct descriptor descriptor;
    uint32_t at = get(ring, ring->position, &descriptor, sizeof descriptor);

    if (descriptor.type != type || descriptor.transaction != transaction) {
        die("a packet is not the one that is due");
    }
    ring->position = (at + descriptor.length8 * 8u - 16 + 8) % ring->size;
}

static void
ring_doorbell(int doorbell)
{
    if (doorbell >= 0 && eventfd_write(doorbell, 1) < 0) {
        die("cannot ring");
    }
}

static uint64_t
now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void
packets(int memfd, uint32_t pages, uint64_t batch, uint64_t total, int doorbell)
{
    struct ring up = map_ring(memfd, pages, 0, 1, 0), down = map_ring(memfd, pages, 1, 0, 0);
    uint64_t sent = 0, heard = 0, free_running = !batch;

    store(&down, MASK, 1);
    if (free_running) {
        batch = FREE_RUNNING;
    }
    while (heard < total) {
        uint32_t before = up.position;

        if (sent < total && (free_running || sent == heard) && room(&up) > batch * (PAYLOAD + 24)) {
            for (uint64_t i = 0; i < batch && sent < total; i++) {
                write_packet(&up, IN_BAND, 1, sent++, PAYLOAD);
            }
            if (publish(&up, before)) {
                ring_doorbell(doorbell);
            }
        }
        if (load(&down, IN) == down.position) {
            relax();
            continue;
        }
        for (uint32_t end = load(&down, IN); down.position != end;) {
            take(&down, COMPLETION, heard++);
        }
        store(&down, OUT, down.position);
        fence();
        if (load(&down, PENDING)) {
            ring_doorbell(doorbell); /* more often than the rule asks for, which does no harm */
        }
    }
}

static void
host(int memfd, uint32_t pages, uint64_t total)
{
    struct ring up = map_ring(memfd, pages, 0, 0, 0), down = map_ring(memfd, pages, 1, 1, 0);
    uint64_t done = 0;

    store(&up, MASK, 1);
    while (done < total) {
        uint32_t end = load(&up, IN), before = down.position;

        if (end == up.position) {
            relax();
            continue;
        }
        while (up.position != end && room(&down) > 24) {
            take(&up, IN_BAND, done);
            write_packet(&down, COMPLETION, 0, done++, 0);
        }
        store(&up, OUT, up.position);
        publish(&down, before);
    }
}

#define GPA_DIRECT 9u
#define VSTOR_SIZE 64u

struct vstor {
    uint32_t operation, flags, status;
    uint16_t length;
    uint8_t srb_status, scsi_status, reserved, path, target, lun, cdb_length, sense_length, data_in, properties;
    uint32_t transfer;
    uint8_t cdb[20], rest[16];
};

_Static_assert(sizeof(struct vstor) == VSTOR_SIZE, "layout of a VSTOR packet");

static void
write_vstor(struct ring *ring, const struct vstor *packet, uint64_t transaction, uint64_t pfn)
{
    struct {
        uint32_t reserved, count, length, offset;
        uint64_t pfn;
    } range = {0, 1, PAGE, 0, pfn};
    uint16_t header = pfn ? sizeof range : 0;
    struct descriptor descriptor = {pfn ? GPA_DIRECT : IN_BAND, (uint16_t)(2 + header / 8),
                                    (uint16_t)(2 + (header + VSTOR_SIZE) / 8), 1, transaction};
    uint32_t trailer[2] = {0, ring->position}, at;

    at = put(ring, ring->position, &descriptor, sizeof descriptor);
    at = put(ring, at, &range, header);
    at = put(ring, at, packet, VSTOR_SIZE);
    ring->position = put(ring, at, trailer, sizeof trailer);
}

/* Take one completion, in whatever order they come; its transaction. */
static uint64_t
take_vstor(struct ring *ring, int is_io)
{
    struct descriptor descriptor;
    struct vstor packet;
    uint32_t at = get(ring, ring->position, &descriptor, sizeof descriptor);

    get(ring, at, &packet, sizeof packet);
    if (descriptor.type != COMPLETION || packet.operation != 1 || packet.status != 0
        || (is_io && (packet.srb_status != 1 || packet.transfer != PAGE))) {
        die("a storage request failed");
    }
    ring->position = (at + descriptor.length8 * 8u - 16 + 8) % ring->size;
    return descriptor.transaction;
}

static void
storage(int memfd, uint32_t pages, uint64_t depth, uint64_t total, int doorbell, uint32_t blocks, int opcode)
{
    static const struct vstor steps[] = {
        {.operation = 7}, {.operation = 9, .length = 0x0602}, {.operation = 10}, {.operation = 8}};
    struct ring up = map_ring(memfd, pages, 0, 1, 0), down = map_ring(memfd, pages, 1, 0, 0);
    uint64_t sent = 0, heard = 0, start, *free_pages = calloc(depth, sizeof *free_pages), spare = depth;
    uint32_t random = 1;

    if (!free_pages) {
        die("no memory");
    }
    store(&down, MASK, 1);
    for (unsigned int i = 0; i < 4; i++) {
        uint32_t before = up.position;

        write_vstor(&up, &steps[i], i, 0);
        if (publish(&up, before)) {
            ring_doorbell(doorbell);
        }
        while (load(&down, IN) == down.position) {
            relax();
        }
        take_vstor(&down, 0);
        store(&down, OUT, down.position);
    }
    for (uint64_t i = 0; i < depth; i++) {
        free_pages[i] = i;
    }
    start = now();
    while (heard < total) {
        uint32_t before = up.position;
        int wrote = 0;

        while (spare && sent < total && room(&up) > 16 + 24 + VSTOR_SIZE + 8) {
            struct vstor packet = {.operation = 3, .length = 52, .cdb_length = 10, .sense_length = 20,
                                   .data_in = opcode == 0x28, .transfer = PAGE};
            uint64_t page = free_pages[--spare];
            uint32_t lba;

            random = random * 1664525u + 1013904223u;
            lba = (uint32_t)((uint64_t)random * blocks >> 32) * 8;
            packet.cdb[0] = (uint8_t)opcode;
            for (int i = 0; i < 4; i++) {
                packet.cdb[2 + i] = (uint8_t)(lba >> (24 - 8 * i));
            }
            packet.cdb[8] = 8;
            write_vstor(&up, &packet, page + 1, 2 * (uint64_t)pages + page);
            sent++;
            wrote = 1;
        }
        if (wrote && publish(&up, before)) {
            ring_doorbell(doorbell);
        }
        if (load(&down, IN) == down.position) {
            relax();
            continue;
        }
        for (uint32_t end = load(&down, IN); down.position != end; heard++) {
            free_pages[spare++] = take_vstor(&down, 1) - 1;
        }
        store(&down, OUT, down.position);
        fence();
        if (load(&down, PENDING)) {
            ring_doorbell(doorbell);
        }
    }
    printf("%llu\n", (unsigned long long)(now() - start));
    free(free_pages);
}

static void
print_times(uint64_t *times, uint64_t total)
{
    for (uint64_t i = 0; i < total; i++) {
        printf("%llu\n", (unsigned long long)times[i]);
    }
    free(times);
}

static void
roundtrip(int memfd, uint32_t pages, uint64_t total, int doorbell, int interrupt, off_t offset)
{
    struct ring up = map_ring(memfd, pages, 0, 1, offset), down = map_ring(memfd, pages, 1, 0, offset);
    uint64_t *times = calloc(total, sizeof *times);
    eventfd_t count;

    store(&down, MASK, 0);
    for (uint64_t i = 0; times && i < total; i++) {
        uint64_t start = now();
        uint32_t before = up.position;

        write_packet(&up, IN_BAND, 1, i, PAYLOAD);
        if (publish(&up, before)) {
            ring_doorbell(doorbell);
        }
        while (load(&down, IN) == down.position) {
            struct pollfd rung = {.fd = interrupt, .events = POLLIN};

            /* The backend has made it non-blocking, so it takes two calls, as in QEMU. */
            if (poll(&rung, 1, -1) < 0 || eventfd_read(interrupt, &count) < 0) {
                die("cannot wait for the interrupt");
            }
        }
        take(&down, COMPLETION, i);
        store(&down, OUT, down.position);
        times[i] = now() - start;
    }
    print_times(times, total);
}

static void
pingpong(uint64_t total)
{
    int ping = eventfd(0, 0), pong = eventfd(0, 0);
    uint64_t *times = calloc(total, sizeof *times);
    eventfd_t count;
    cpu_set_t cpus, one;
    pid_t child;

    sched_getaffinity(0, sizeof cpus, &cpus);
    child = fork();
    if (!child) {
        /* Guest on the last CPU, host on the first, as in the benchmark that this is compared with. */
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if (CPU_ISSET(cpu, &cpus)) {
                CPU_ZERO(&one);
                CPU_SET(cpu, &one);
                sched_setaffinity(0, sizeof one, &one);
                break;
            }
        }
        for (uint64_t i = 0; i < total; i++) {
            if (eventfd_read(ping, &count) < 0 || eventfd_write(pong, 1) < 0) {
                _exit(1);
            }
        }
        _exit(0);
    }
    for (int cpu = CPU_SETSIZE - 1; cpu >= 0; cpu--) {
        if (CPU_ISSET(cpu, &cpus)) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            sched_setaffinity(0, sizeof one, &one);
            break;
        }
    }
    for (uint64_t i = 0; times && i < total; i++) {
        uint64_t start = now();

        if (eventfd_write(ping, 1) < 0 || eventfd_read(pong, &count) < 0) {
            die("cannot play");
        }
        times[i] = now() - start;
    }
    waitpid(child, NULL, 0);
    print_times(times, total);
}

int
main(int argc, char **argv)
{
    long number[8] = {0};

    for (int i = 2; i < argc && i < 10; i++) {
        number[i - 2] = atol(argv[i]);
    }
    if (argc == 7 && !strcmp(argv[1], "packets")) {
        packets((int)number[0], (uint32_t)number[1], (uint64_t)number[2], (uint64_t)number[3], (int)number[4]);
    } else if (argc == 5 && !strcmp(argv[1], "host")) {
        host((int)number[0], (uint32_t)number[1], (uint64_t)number[2]);
    } else if (argc == 8 && !strcmp(argv[1], "roundtrip")) {
        roundtrip((int)number[0], (uint32_t)number[1], (uint64_t)number[2], (int)number[3], (int)number[4],
                  (off_t)number[5]);
    } else if (argc == 9 && !strcmp(argv[1], "storage")) {
        storage((int)number[0], (uint32_t)number[1], (uint64_t)number[2], (uint64_t)number[3], (int)number[4],
                (uint32_t)number[5], (int)number[6]);
    } else if (argc == 3 && !strcmp(argv[1], "pingpong")) {
        pingpong((uint64_t)number[0]);
    } else {
        die("see the head of bench/guest.c for how to call it");
    }
    return 0;
}
