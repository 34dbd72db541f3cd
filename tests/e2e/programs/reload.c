// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Runs code that it has read from a disk into the same memory again and again, as programs are that
 * come and go. Each of 64 programs has two pages: at their begin a function that returns the
 * program's number, and across their border one that returns the number of the first page's program
 * in its low half, and the second page's in its high half (the instruction itself is cut in two).
 *
 * reload DEVICE THREADS ROUNDS; prints "reload: N rounds, M stale" and ends with status 1 if M.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PROGRAMS = 64, ACROSS = PAGE - 3 };

static int disk, rounds;
static atomic_uint stale;

static void fail(const char *what)
{
    perror(what);
    exit(2);
}

static void load(uint8_t *memory, int program, int page)
{
    /* O_DIRECT: the host writes into these very pages. */
    if (pread(disk, memory + page * PAGE, PAGE, (program * 2 + page) * (off_t)PAGE) != PAGE)
        fail("pread");
}

static uint32_t call(uint8_t *code)
{
    return ((uint32_t (*)(void))code)();
}

static void expect(uint32_t found, uint32_t wanted)
{
    if (found != wanted)
        stale++;
}

static void *run(void *argument)
{
    unsigned seed = (uintptr_t)argument;
    uint8_t *memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (memory == MAP_FAILED)
        fail("mmap");
    for (int i = 0; i < rounds; i++) {
        uint32_t first = rand_r(&seed) % PROGRAMS, second = rand_r(&seed) % PROGRAMS;

        load(memory, first, 0);
        load(memory, first, 1);
        expect(call(memory), first);
        expect(call(memory + ACROSS), first << 16 | first);
        /* Only what is behind the border changes now. */
        load(memory, second, 1);
        expect(call(memory + ACROSS), second << 16 | first);
    }
    return NULL;
}

int main(int count, char **words)
{
    if (count != 4)
        return 2;
    disk = open(words[1], O_RDONLY | O_DIRECT);
    if (disk < 0)
        fail(words[1]);
    int threads = atoi(words[2]);
    pthread_t running[threads];

    rounds = atoi(words[3]);
    for (int i = 0; i < threads; i++)
        if (pthread_create(&running[i], NULL, run, (void *)(uintptr_t)(i + 1)))
            return 2;
    for (int i = 0; i < threads; i++)
        pthread_join(running[i], NULL);
    printf("reload: %d rounds, %u stale\n", threads * rounds, stale);
    return stale != 0;
}
