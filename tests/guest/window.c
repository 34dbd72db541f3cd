/* SPDX-License-Identifier: MIT */
/*
 * window: numbered messages both ways on every processor at once, for tests of back-pressure and of order.
 *
 *   run=window cpus=N
 *   post=N       messages that each processor posts (0): its index, a number from 1 on. One that the host has no room
 *                for is posted again until the host takes it
 *   take=N       messages of the host that each processor takes (0): its index, a number from 1 on
 *   slow=US      how long a message of the host stays in its slot (0)
 *   connection=N where messages go (1); sint=N where the host's are taken (2), vector 0x60
 *
 * Lines: "window ready" before the first message; "window full vp=1" when the host had no room for the first time;
 * "window vp=1 posted=500 refused=17 taken=200 disorder=0 other=0" at the end, for each processor.
 */

#include "lib/hyperv.h"

#define VEC_WINDOW 0x60

struct tally {
    u32 posted, refused, taken, disorder, other;
} __attribute__((aligned(64)));

static struct tally tallies[MAX_CPUS];
static u32 sint;

/* The slot is looked at by the loop below; the interrupt only has to be possible. */
static void interrupt(u8 vector)
{
    (void)vector;
}

static void prepare(void *arg)
{
    (void)arg;
    hv_synic_start();
    wrmsr(SINT(sint), VEC_WINDOW);
}

static void post(struct tally *t, u32 connection)
{
    u32 index = this_cpu()->index;
    u32 *input = (u32 *)my_pages()->input;

    input[0] = connection;
    input[1] = 0;
    input[2] = 1;
    input[3] = 8;
    input[4] = index;
    input[5] = t->posted + 1;
    switch (HV_STATUS(hypercall(HV_POST_MESSAGE, (uintptr_t)input, 0))) {
    case HV_SUCCESS:
        t->posted++;
        break;
    case HV_INSUFFICIENT_BUFFERS:
        if (!t->refused++) {
            print("window full vp=%u", index);
        }
        break;
    default:
        t->other++;
    }
}

/* TLFS 11.9.2: empty the slot first, then look whether another message waits. */
static void take(struct tally *t, volatile struct hv_message *slot, u64 slow)
{
    delay(slow);
    t->taken++;
    t->disorder += slot->size != 8 || slot->word[0] != this_cpu()->index || slot->word[1] != t->taken;
    slot->type = 0;
    mfence();
    if (slot->flags & MSG_FLAG_PENDING) {
        wrmsr(MSR_EOM, 0);
    }
}

static void exchange(void *arg)
{
    struct tally *t = &tallies[this_cpu()->index];
    volatile struct hv_message *slot = my_slot(sint);
    u32 posts = (u32)option_number("post", 0), takes = (u32)option_number("take", 0);
    u32 connection = (u32)option_number("connection", 1);
    u64 slow = option_number("slow", 0) * (MS / 1000);

    (void)arg;
    while (!t->other && (t->posted < posts || t->taken < takes)) {
        if (t->posted < posts) {
            post(t, connection);
        }
        if (slot->type) {
            take(t, slot, slow);
        }
        pause();
    }
}

SUITE(window)
{
    sint = (u32)option_number("sint", 2);
    irq_handler(VEC_WINDOW, interrupt);
    hv_start();
    on_all(prepare, NULL);
    print("window ready");
    on_all(exchange, NULL);
    for (u32 i = 0; i < cpu_count; i++) {
        struct tally *t = &tallies[i];

        print("window vp=%u posted=%u refused=%u taken=%u disorder=%u other=%u", i, t->posted, t->refused, t->taken,
              t->disorder, t->other);
        check(!t->disorder && !t->other, "processor %u: in order, and no status that no guest expects", i);
    }
}
