/* SPDX-License-Identifier: MIT */
/*
 * storm: every processor but the first posts messages and signals events without a pause, for tests of what is
 * behind them. The first one counts ticks and prints what happened; it makes no hypercall, so that its ticks show
 * that the machine lives however the host behaves.
 *
 *   run=storm cpus=N     at least 2
 *   connection=N         where messages go (1)
 *   event=N events=N     the first connection signalled (0x2001), and how many (16)
 *   tick=MS ticks=N      the first processor prints each MS (100); ends after N ticks (0: never)
 *   size=N               payload bytes of each message; without it, all sizes from 0 to 240
 *   seed=N               of the payloads; they are random, and not VMBus messages but by accident
 *   sint=N               where the host's messages are taken (2), vector 0x60
 *
 * Lines: "storm tick=3 posted=812 refused=9 signalled=700 unknown=112 invalid=0 received=5 interrupts=5 other=0"; all
 * numbers are sums since the start. "refused": the host had no room (HV_STATUS_INSUFFICIENT_BUFFERS). "unknown":
 * nobody is behind the connection (HV_STATUS_INVALID_CONNECTION_ID). "invalid": the host did not like the message
 * (HV_STATUS_INVALID_HYPERCALL_INPUT). "other": any other status, or a fault, which fails the run.
 */

#include "lib/hyperv.h"

#define VEC_STORM 0x60

struct tally {
    volatile u32 posted, refused, signalled, unknown, invalid, received, other, last_other;
} __attribute__((aligned(64)));

static struct tally tallies[MAX_CPUS];
static volatile bool stop;
static u32 sint;

static u32 random(u32 *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* A message of the host: take it, and ask for the next if there is one (TLFS 11.9.2). */
static void take_message(u8 vector)
{
    volatile struct hv_message *slot = my_slot(sint);

    (void)vector;
    if (slot->type) {
        tallies[this_cpu()->index].received++;
        slot->type = 0;
        mfence();
        if (slot->flags & MSG_FLAG_PENDING) {
            wrmsr(MSR_EOM, 0);
        }
    }
}

static void count(struct tally *t, u64 result, volatile u32 *good)
{
    switch (HV_STATUS(result)) {
    case HV_SUCCESS:
        (*good)++;
        break;
    case HV_INSUFFICIENT_BUFFERS:
        t->refused++;
        break;
    case HV_INVALID_CONNECTION_ID:
        t->unknown++;
        break;
    case HV_INVALID_HYPERCALL_INPUT:
        t->invalid++;
        break;
    default:
        t->other++;
        t->last_other = HV_STATUS(result);
    }
}

static void storm_processor(void *arg)
{
    u32 index = this_cpu()->index;
    struct tally *t = &tallies[index];
    u32 seed = ((u32)option_number("seed", 1) + index) * 2654435761u | 1;
    u32 connection = (u32)option_number("connection", 1);
    u32 event = (u32)option_number("event", 0x2001), events = (u32)option_number("events", 16);
    u32 fixed_size = (u32)option_number("size", 241);
    u32 *input = (u32 *)my_pages()->input;

    (void)arg;
    hv_synic_start();
    wrmsr(SINT(sint), VEC_STORM);
    while (!stop) {
        u32 size = fixed_size <= 240 ? fixed_size : random(&seed) % 241;

        input[0] = connection;
        input[1] = 0;
        input[2] = 1; /* message type: as the guest likes, with the highest bit clear */
        input[3] = size;
        for (u32 i = 0; i < (size + 3) / 4; i++) {
            input[4 + i] = random(&seed);
        }
        count(t, hypercall(HV_POST_MESSAGE, (uintptr_t)input, 0), &t->posted);
        for (u32 i = 0; i < 4 && events; i++) {
            count(t, hypercall(HV_SIGNAL_EVENT | HV_FAST, event + random(&seed) % events, 0), &t->signalled);
        }
    }
    hv_synic_stop();
}

SUITE(storm)
{
    u64 period = option_number("tick", 100) * MS;
    u64 ticks = option_number("ticks", 0);
    u64 next;
    struct tally sum;
    u32 interrupts;

    sint = (u32)option_number("sint", 2);
    if (cpu_count < 2) {
        bail_out("storm needs cpus=2 or more");
    }
    irq_handler(VEC_STORM, take_message);
    hv_start();
    for (u32 i = 1; i < cpu_count; i++) {
        cpu_start(i, storm_processor, NULL);
    }
    next = ref_time();
    for (u32 tick = 1; !ticks || tick <= ticks; tick++) {
        next += period;
        while (ref_time() < next) {
            pause();
        }
        memset(&sum, 0, sizeof(sum));
        interrupts = 0;
        for (u32 i = 1; i < cpu_count; i++) {
            struct tally *t = &tallies[i];

            sum.posted += t->posted;
            sum.refused += t->refused;
            sum.signalled += t->signalled;
            sum.unknown += t->unknown;
            sum.invalid += t->invalid;
            sum.received += t->received;
            sum.other += t->other;
            sum.last_other = t->other ? t->last_other : sum.last_other;
            interrupts += cpu_at(i)->irqs[VEC_STORM];
        }
        print("storm tick=%u posted=%u refused=%u signalled=%u unknown=%u invalid=%u received=%u interrupts=%u other=%u",
              tick, sum.posted, sum.refused, sum.signalled, sum.unknown, sum.invalid, sum.received, interrupts,
              sum.other);
        if (sum.other) {
            check_eq(sum.last_other, HV_SUCCESS, "a status that no guest expects");
            break;
        }
    }
    stop = true;
    for (u32 i = 1; i < cpu_count; i++) {
        cpu_join(i);
    }
    check(true, "the storm is over");
}
