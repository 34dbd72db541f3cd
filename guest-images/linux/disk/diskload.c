// SPDX-License-Identifier: MIT
/*
 * vmbus-diskload DEVICE THREADS BLOCKS: write to a disk and know what must be on it.
 *
 * Each thread has blocks of its own and one request under way at a time, past the page cache. Each write carries
 * the number of its block and a generation that counts up; each read must find the last generation that was
 * completed, in every word. A write that was lost, came late or came twice shows as an older generation. The table of what was
 * completed is in this program's memory, so it goes into a snapshot of the machine with the requests.
 *
 * It says "diskload: running" when every thread has written, and ends when the file /tmp/diskload.stop is there: then all
 * blocks are flushed and read once more. Status 0 and one line with the counts, or one line with what is wrong.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK 4096
#define WORDS (BLOCK / 8)
#define STOP "/tmp/diskload.stop"

static int fd;
static unsigned int threads, blocks;
static uint64_t *generations;
static atomic_ulong writes, reads;
static atomic_uint begun;

static void
fail(const char *what, uint64_t block, uint64_t found, uint64_t expected)
{
    printf("diskload: %s at block %llu: %#llx, not %#llx\n", what, (unsigned long long)block,
           (unsigned long long)found, (unsigned long long)expected);
    fflush(stdout);
    _exit(1);
}

static uint64_t
word(uint64_t block, uint64_t generation, unsigned int index)
{
    return (block << 40) ^ (generation << 10) ^ index;
}

static void
write_block(uint64_t *buffer, uint64_t block)
{
    uint64_t generation = generations[block] + 1;

    for (unsigned int i = 0; i < WORDS; i++) {
        buffer[i] = word(block, generation, i);
    }
    if (pwrite(fd, buffer, BLOCK, block * BLOCK) != BLOCK) {
        fail("a write failed", block, errno, 0);
    }
    generations[block] = generation;
    atomic_fetch_add(&writes, 1);
}

static void
check_block(uint64_t *buffer, uint64_t block)
{
    memset(buffer, 0xee, BLOCK);
    if (pread(fd, buffer, BLOCK, block * BLOCK) != BLOCK) {
        fail("a read failed", block, errno, 0);
    }
    for (unsigned int i = 0; i < WORDS; i++) {
        if (buffer[i] != word(block, generations[block], i)) {
            fail("wrong data", block, buffer[i], word(block, generations[block], i));
        }
    }
    atomic_fetch_add(&reads, 1);
}

static void *
load(void *argument)
{
    unsigned int self = (unsigned int)(uintptr_t)argument;
    unsigned int seed = self * 2654435761u + 1;
    uint64_t *buffer;

    if (posix_memalign((void **)&buffer, BLOCK, BLOCK)) {
        fail("no memory", 0, 0, 0);
    }
    for (uint64_t block = self; block < blocks; block += threads) {
        write_block(buffer, block);
    }
    if (atomic_fetch_add(&begun, 1) + 1 == threads) {
        printf("diskload: running\n");
        fflush(stdout);
    }
    while (access(STOP, F_OK) != 0) {
        uint64_t block = self + (uint64_t)threads * (rand_r(&seed) % (blocks / threads));

        if (rand_r(&seed) % 3) {
            write_block(buffer, block);
        } else {
            check_block(buffer, block);
        }
    }
    free(buffer);
    return NULL;
}

int
main(int argc, char **argv)
{
    pthread_t *workers;
    uint64_t *buffer;

    if (argc != 4 || (threads = atoi(argv[2])) == 0 || (blocks = atoi(argv[3])) < threads) {
        fprintf(stderr, "usage: vmbus-diskload DEVICE THREADS BLOCKS\n");
        return 2;
    }
    fd = open(argv[1], O_RDWR | O_DIRECT);
    generations = calloc(blocks, sizeof *generations);
    workers = calloc(threads, sizeof *workers);
    if (fd < 0 || !generations || !workers || posix_memalign((void **)&buffer, BLOCK, BLOCK)) {
        perror(argv[1]);
        return 1;
    }
    for (uintptr_t i = 0; i < threads; i++) {
        if (pthread_create(&workers[i], NULL, load, (void *)i)) {
            fail("no thread", i, 0, 0);
        }
    }
    for (unsigned int i = 0; i < threads; i++) {
        pthread_join(workers[i], NULL);
    }
    if (fsync(fd) != 0) {
        fail("a flush failed", 0, errno, 0);
    }
    for (uint64_t block = 0; block < blocks; block++) {
        check_block(buffer, block);
    }
    printf("diskload: good, %lu writes, %lu reads\n", atomic_load(&writes), atomic_load(&reads));
    return 0;
}
