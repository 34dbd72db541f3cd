/* SPDX-License-Identifier: MIT */
/*
 * stress: timers, IPIs and messages on all processors for seconds=N (5), each interrupt accounted for.
 *
 * Each processor has at any time: one timer whose message goes to SINT 3, one in direct mode, and one IPI to another
 * processor under way, by hypercall and by APIC in turn; a new one starts when the last has arrived, and not before.
 * So none can hide behind another: one that is lost is missed within PATIENCE, and one too many is seen at once. A
 * periodic timer goes on beside. The first processor has a VMBus message to one of the others under way. Processors
 * sleep in HLT when there is nothing to do, so that a lost wake-up counts as well.
 */

#include "lib/hyperv.h"

#define VEC_DIRECT 0x75
#define VEC_FROM(sender) (0x80u + 1 + (sender)) /* 0x80 is VEC_USER */
#define ME (this_cpu()->index)

struct side {
    volatile u64 shots, got, directs, ipis, answers, periods;
    u64 since[3]; /* when the one under way was started */
    u32 seed, target, ipi_sent[MAX_CPUS];
    bool under_way[3];
} __attribute__((aligned(64)));

static struct side sides[MAX_CPUS];
static volatile u32 lost, doubled;
static u64 end;
static struct barrier start;
#define PERIOD 30001ull

static u32 random(u32 *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

static void take(u8 vector)
{
    struct timer_log *log = my_log();
    struct side *s = &sides[ME];
    u32 before = log->count;

    log_messages(vector);
    if (log->count != before) {
        if (vector == VEC_SINT(4)) {
            s->periods++;
        } else {
            s->got++;
        }
    }
}

/* Is what was started there? If not for too long, it is lost. */
static bool arrived(struct side *s, u32 what, bool there, bool too_many, const char *name)
{
    if (too_many) {
        doubled++;
        note("processor %u: one %s too many", ME, name);
        s->under_way[what] = false;
        return false;
    }
    if (there) {
        s->under_way[what] = false;
        return true;
    }
    if (ref_time() > s->since[what] + PATIENCE) {
        lost++;
        note("processor %u: a %s is lost", ME, name);
        s->under_way[what] = false;
    }
    return false;
}

static void one_round(struct side *s, bool use_direct, bool use_ipi, bool more)
{
    u64 now = ref_time();

    if (s->under_way[0]) {
        arrived(s, 0, s->got == s->shots, s->got > s->shots, "timer message");
    } else if (more) {
        s->since[0] = now;
        s->under_way[0] = true;
        s->shots++;
        /* one in eight is late already */
        stimer_shoot(0, 3, random(&s->seed) & 7 ? now + random(&s->seed) % 5000 : now - 3);
    }
    if (s->under_way[1]) {
        arrived(s, 1, irq_count(VEC_DIRECT) == (u32)s->directs, irq_count(VEC_DIRECT) > (u32)s->directs,
                "direct timer interrupt");
    } else if (more && use_direct) {
        s->since[1] = now;
        s->under_way[1] = true;
        s->directs++;
        wrmsr(STIMER_CONFIG(2), STIMER_DIRECT | STIMER_VECTOR(VEC_DIRECT) | STIMER_AUTO_ENABLE);
        wrmsr(STIMER_COUNT(2), now + random(&s->seed) % 3000);
    }
    if (cpu_count == 1) {
        return;
    }
    if (s->under_way[2]) {
        u32 got = cpu_at(s->target)->irqs[VEC_FROM(ME)];

        arrived(s, 2, got == s->ipi_sent[s->target], got > s->ipi_sent[s->target], "IPI");
    } else if (more) {
        s->target = random(&s->seed) % cpu_count;
        if (s->target == ME) {
            return;
        }
        s->since[2] = now;
        s->under_way[2] = true;
        s->ipi_sent[s->target]++;
        s->ipis++;
        if (use_ipi && s->ipis & 1) {
            hypercall(HV_SEND_IPI | HV_FAST, VEC_FROM(ME), 1ull << s->target);
        } else {
            apic_ipi(s->target, 0x4000 | VEC_FROM(ME));
        }
    }
}

static struct {
    u32 target, expected;
    u64 since;
    bool under_way;
} vmbus;

static void vmbus_round(u32 *seed, bool more)
{
    if (vmbus.under_way) {
        u32 got = timer_logs[vmbus.target].others;

        if (got == vmbus.expected) {
            sides[vmbus.target].answers++;
            vmbus.under_way = false;
        } else if (got > vmbus.expected) {
            doubled++;
            note("processor %u: one answer of VMBus too many", vmbus.target);
            vmbus.under_way = false;
        } else if (ref_time() > vmbus.since + PATIENCE) {
            lost++;
            note("processor %u: an answer of VMBus is lost", vmbus.target);
            vmbus.under_way = false;
        }
    } else if (more) {
        vmbus.target = random(seed) % cpu_count;
        vmbus.expected = timer_logs[vmbus.target].others + 1;
        vmbus.since = ref_time();
        vmbus.under_way = vmbus_contact(vmbus.target) == HV_SUCCESS;
    }
}

static void processor(void *arg)
{
    struct side *s = &sides[ME];
    bool use_direct = has_feature("stimer-direct"), use_ipi = has_feature("ipi"), use_vmbus = option("vmbus");

    (void)arg;
    s->seed = (ME + 1) * 2654435761u;
    hv_synic_log();
    irq_handler(VEC_SINT(3), take);
    irq_handler(VEC_SINT(4), take);
    wrmsr(STIMER_COUNT(1), PERIOD);
    wrmsr(STIMER_CONFIG(1), STIMER_SINT(4) | STIMER_PERIODIC | STIMER_ENABLE);
    /* A processor that has not enabled its SynIC yet has no use for VMBus's answer. */
    barrier_wait(&start, cpu_count);
    while (ref_time() < end && !lost && !doubled) {
        one_round(s, use_direct, use_ipi, true);
        if (ME == 0 && use_vmbus) {
            vmbus_round(&s->seed, true);
        }
        if (!(random(&s->seed) & 3)) {
            /* Something is under way, and the periodic timer is there for the case that it is lost. */
            irq_disable();
            irq_wait();
            irq_enable();
        }
        pause();
    }
    /* What is still under way has to arrive, or is found to be lost. */
    while (s->under_way[0] || s->under_way[1] || s->under_way[2] || (ME == 0 && vmbus.under_way)) {
        one_round(s, use_direct, use_ipi, false);
        if (ME == 0) {
            vmbus_round(&s->seed, false);
        }
        pause();
    }
    hv_synic_stop();
}

SUITE(stress)
{
    u64 seconds = option_number("seconds", 5);
    struct side sum;

    if (!has_feature("stimer")) {
        skip("no hv-stimer", "stress");
        return;
    }
    hv_start();
    end = ref_time() + seconds * 1000 * MS;
    on_all(processor, NULL);
    memset(&sum, 0, sizeof(sum));
    for (u32 i = 0; i < cpu_count; i++) {
        sum.shots += sides[i].shots;
        sum.directs += sides[i].directs;
        sum.ipis += sides[i].ipis;
        sum.answers += sides[i].answers;
        sum.periods += sides[i].periods;
        check(sides[i].periods > 0, "processor %u: the periodic timer went on", i);
        check_eq(timer_logs[i].early, 0, "processor %u: no timer was early", i);
    }
    note("%llu timer messages, %llu direct, %llu IPIs, %llu answers of VMBus, %llu periods",
         (unsigned long long)sum.shots, (unsigned long long)sum.directs, (unsigned long long)sum.ipis,
         (unsigned long long)sum.answers, (unsigned long long)sum.periods);
    check_eq(lost, 0, "nothing is lost");
    check_eq(doubled, 0, "nothing comes twice");
    hv_stop();
}
