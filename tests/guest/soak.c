/* SPDX-License-Identifier: MIT */
/*
 * soak: all sources of interrupts on all processors at once, for as long as one likes, each interrupt accounted for.
 *
 *   run=soak cpus=N      at most 16
 *   seconds=N            of reference time (15)
 *   seed=N               of all that is random (1)
 *
 * Each processor has under way, at any time:
 *   two one-shot timers whose messages go to the same SINTs, one of them with auto EOI: so slots are full, the second
 *     one waits, and comes after EOM or after EOI, as chance has it; some messages stay in their slot for a while;
 *   a periodic timer with messages, which must keep its phase, and which is off for a while now and then;
 *   a timer in direct mode, one-shot or periodic;
 *   an IPI by the APIC's or Hyper-V's ICR to one processor;
 *   an IPI by hypercall to some processors, in one of its forms;
 * and the first one has a message of VMBus to one of them on its way. A new one of a kind starts when the last has
 * arrived, and not before: so none can hide behind another. What has not arrived after OVERDUE is lost; any processor
 * finds that, as the one that waits may sleep: by HLT or GUEST_IDLE, also without a timer that would hide a lost
 * wake-up. In between they flush TLBs by hypercall, and raise TPR. What arrives without having been sent is found at
 * once.
 */

#include "lib/hyperv.h"

#define SOAK_CPUS 16u
#define VEC_MESSAGE(sint) ((u8)(0x40 + (sint)))
#define VEC_SHOT 0x90 /* stimer in direct mode */
#define VEC_ICR(sender) ((u8)(0xa0 + (sender)))
#define VEC_CALL(sender) ((u8)(0xc0 + (sender)))

#define SINT_VMBUS VMBUS_SINT
#define SINT_EOI 3u  /* one-shot timers, ended by EOI */
#define SINT_AUTO 5u /* one-shot timers, auto EOI */
#define SINT_TICK 4u /* the periodic timer */

#define TICK 1u /* timers 0 and 3 are the two one-shot ones */
#define SHOT 2u

#define OVERDUE (10000 * MS)

enum kind { MESSAGE_0, MESSAGE_3, TICKS, SHOTS, BY_ICR, BY_CALL, ANSWER, KINDS };
static const char *const kind_names[] = {
    "message of timer 0", "message of timer 3", "message of the periodic timer", "interrupt of the direct timer",
    "IPI by ICR",         "IPI by hypercall",   "answer of VMBus"};

/* Something that is under way. Written by one processor, read by all. */
struct way {
    volatile bool on;
    volatile u64 since, started;
    volatile u64 targets; /* a bit for each processor */
    volatile u64 expiration;
};

struct side {
    struct way way[KINDS];
    volatile u64 taken[4];     /* messages of each timer */
    volatile u64 messages[16]; /* of any kind, for each SINT */
    volatile u32 answers, empty, polled, lazy, flushes, sleeps;
    volatile u64 tick_last, tick_period;
    u64 shot_start, shot_period;
    u32 shot_base, shots_wanted;
    volatile u32 ipis[2][SOAK_CPUS]; /* by ICR and by call, sent to each processor */
    volatile u32 left;               /* SINTs whose message was left in its slot */
    volatile bool ending;            /* an answer of VMBus may come when nobody looks after "left" any more */
    u32 seed, irq_seed;
} __attribute__((aligned(64)));

static struct side sides[SOAK_CPUS];
static struct barrier meeting;
static volatile bool stop;
static u64 end;
static u32 failures;
static bool use_direct, use_calls, use_flush, use_assist, use_idle, use_xmm;

#define ME (this_cpu()->index)

static u32 random(u32 *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* All stop at the first failure: what comes after it would only hide it. */
#define failed(...)                                                                                                  \
    ({                                                                                                               \
        if (__atomic_fetch_add(&failures, 1, __ATOMIC_SEQ_CST) < 8) {                                                \
            check(false, __VA_ARGS__);                                                                               \
        }                                                                                                            \
        stop = true;                                                                                                 \
    })

/* --- interrupts --- */

/*
 * The guest's part of lazy EOI (TLFS 10.3.5): test and clear "No EOI Required" by one instruction, as the host may
 * withdraw it at any time between two.
 */
static bool take_no_eoi_required(u32 *assist)
{
    bool was;

    __asm__ volatile("btrl $0, %0; setc %1" : "+m"(*assist), "=q"(was)::"memory", "cc");
    return was;
}

static void end_of_interrupt(struct side *s)
{
    if (use_assist && take_no_eoi_required((u32 *)my_pages()->assist)) {
        s->lazy++;
    } else if (use_assist && random(&s->irq_seed) & 1) {
        wrmsr(MSR_EOI, 0);
    } else {
        apic_eoi();
    }
}

static void tick(struct side *s, u64 expiration, u64 now)
{
    u64 at = s->tick_last;

    do {
        at += s->tick_period;
    } while (at < expiration);
    if (s->tick_last && at != expiration) {
        failed("processor %u: the periodic timer has lost its phase: %llu after %llu, period %llu", ME,
               (unsigned long long)expiration, (unsigned long long)s->tick_last,
               (unsigned long long)s->tick_period);
    }
    s->tick_last = expiration;
    s->way[TICKS].since = now;
    s->taken[TICK]++;
}

static void timer_message(struct side *s, u32 sint, volatile struct hv_message *slot)
{
    u32 index = slot->timer.index;
    u64 expiration = slot->timer.expiration, now = ref_time();
    struct way *way = &s->way[index == 0 ? MESSAGE_0 : index == 3 ? MESSAGE_3 : TICKS];

    if (now < expiration || slot->timer.delivery < expiration || slot->timer.delivery > now) {
        failed("processor %u: a message of timer %u is early: %llu, delivered %llu, now %llu", ME, index,
               (unsigned long long)expiration, (unsigned long long)slot->timer.delivery, (unsigned long long)now);
    }
    if (index >= 4 || index == SHOT || !way->on || (index == TICK) != (sint == SINT_TICK)) {
        failed("processor %u: nobody waits for this message of timer %u at SINT %u", ME, index, sint);
    } else if (index == TICK) {
        tick(s, expiration, now);
    } else if (expiration != way->expiration || s->taken[index] + 1 != way->started) {
        failed("processor %u: message %llu of timer %u comes twice, or is another: expiration %llu, not %llu", ME,
               (unsigned long long)way->started, index, (unsigned long long)expiration,
               (unsigned long long)way->expiration);
    } else {
        s->taken[index]++;
    }
}

/* With interrupts off. Returns whether more messages wait. */
static bool take(struct side *s, u32 sint)
{
    volatile struct hv_message *slot = my_slot(sint);

    if (!slot->type) {
        return false;
    }
    if (slot->type == MSG_TIMER_EXPIRED) {
        timer_message(s, sint, slot);
    } else if (sint == SINT_VMBUS) {
        s->answers++;
    } else {
        failed("processor %u: a message of type 0x%x at SINT %u", ME, slot->type, sint);
    }
    s->messages[sint]++;
    slot->type = 0;
    mfence();
    return slot->flags & MSG_FLAG_PENDING;
}

static void message_interrupt(u8 vector)
{
    struct side *s = &sides[ME];
    u32 sint = vector - VEC_MESSAGE(0), way = random(&s->irq_seed) % 4;

    if (!my_slot(sint)->type) {
        s->empty++;
    } else if (way == 0 && !s->ending) {
        s->left |= 1u << sint;
    } else if (take(s, sint) && (sint == SINT_AUTO || way == 1)) {
        /* Otherwise EOI does it, too: here the slot is empty before EOI. */
        wrmsr(MSR_EOM, 0);
    }
    if (sint != SINT_AUTO) {
        end_of_interrupt(s);
    }
}

static void other_interrupt(u8 vector)
{
    (void)vector;
    end_of_interrupt(&sides[ME]);
}

/* The messages that were left in their slots. */
static void take_left(struct side *s)
{
    irq_disable();
    for (u32 sint = 0; s->left; sint++) {
        if (s->left >> sint & 1) {
            s->left &= ~(1u << sint);
            s->polled++;
            if (take(s, sint)) {
                wrmsr(MSR_EOM, 0);
            }
        }
    }
    irq_enable();
}

/* --- what is under way --- */

/* Has it arrived? Any processor may ask. */
static bool there(u32 cpu, enum kind kind)
{
    const struct side *s = &sides[cpu];
    const struct way *way = &s->way[kind];

    switch (kind) {
    case MESSAGE_0:
    case MESSAGE_3:
        return s->taken[kind == MESSAGE_0 ? 0 : 3] == way->started;
    case TICKS:
        return false; /* each one moves "since" */
    case SHOTS:
        return cpu_at(cpu)->irqs[VEC_SHOT] - s->shot_base >= s->shots_wanted;
    case BY_ICR:
    case BY_CALL:
        for (u32 i = 0; i < cpu_count; i++) {
            u8 vector = kind == BY_ICR ? VEC_ICR(cpu) : VEC_CALL(cpu);

            if (way->targets >> i & 1 && cpu_at(i)->irqs[vector] != s->ipis[kind == BY_CALL][i]) {
                return false;
            }
        }
        return true;
    default:
        for (u32 i = 0; i < cpu_count; i++) {
            if (way->targets >> i & 1 && sides[i].answers != s->way[ANSWER].expiration) {
                return false;
            }
        }
        return true;
    }
}

static void describe(u32 cpu, enum kind kind)
{
    const struct side *s = &sides[cpu];
    const struct way *way = &s->way[kind];
    u64 now = ref_time();

    failed("processor %u: %s number %llu to 0x%llx is lost: since %llu", cpu, kind_names[kind],
           (unsigned long long)way->started, (unsigned long long)way->targets,
           (unsigned long long)way->since);
    note("expiration %llu, now %llu; taken %llu, %llu, %llu, %llu; left 0x%x; direct %u of %u",
         (unsigned long long)way->expiration, (unsigned long long)now, (unsigned long long)s->taken[0],
         (unsigned long long)s->taken[1], (unsigned long long)s->taken[2], (unsigned long long)s->taken[3], s->left,
         cpu_at(cpu)->irqs[VEC_SHOT] - s->shot_base, s->shots_wanted);
    for (u32 sint = 2; sint <= SINT_AUTO; sint++) {
        note("SINT %u: slot type 0x%x, flags %u, timer %u; %llu messages, %u interrupts", sint,
             slot_of(cpu, sint)->type, slot_of(cpu, sint)->flags, slot_of(cpu, sint)->timer.index,
             (unsigned long long)s->messages[sint], cpu_at(cpu)->irqs[VEC_MESSAGE(sint)]);
    }
    for (u32 i = 0; i < cpu_count; i++) {
        note("to processor %u: IPIs by ICR %u, there %u; by hypercall %u, there %u; answers of VMBus %u", i,
             s->ipis[0][i], cpu_at(i)->irqs[VEC_ICR(cpu)], s->ipis[1][i], cpu_at(i)->irqs[VEC_CALL(cpu)],
             sides[i].answers);
    }
}

/* Looks after all processors. */
static void look_for_lost(void)
{
    for (u32 cpu = 0; cpu < cpu_count && !stop; cpu++) {
        for (enum kind kind = 0; kind < KINDS; kind++) {
            struct way *way = &sides[cpu].way[kind];
            u64 since = way->since;

            /* In this order: "since" belongs to what is on. */
            mfence();
            if (way->on && since + OVERDUE < ref_time() && !there(cpu, kind) && way->since == since && way->on) {
                describe(cpu, kind);
            }
        }
    }
    if (stop) {
        for (u32 cpu = 0; cpu < cpu_count; cpu++) {
            apic_ipi(cpu, 0x4000 | VEC_WAKE);
        }
    }
}

static void begin(struct way *way, u64 targets)
{
    way->targets = targets;
    way->since = ref_time();
    way->started++;
    mfence();
    way->on = true;
}

static void start_message(struct side *s, u32 timer)
{
    struct way *way = &s->way[timer == 0 ? MESSAGE_0 : MESSAGE_3];
    u64 config = STIMER_SINT(random(&s->seed) & 1 ? SINT_EOI : SINT_AUTO), now = ref_time();

    /* One in eight is late already. */
    way->expiration = random(&s->seed) & 7 ? now + random(&s->seed) % 6000 : now - 1 - (random(&s->seed) & 7);
    begin(way, 1ull << ME);
    if (random(&s->seed) & 1) {
        wrmsr(STIMER_CONFIG(timer), config | STIMER_AUTO_ENABLE);
        wrmsr(STIMER_COUNT(timer), way->expiration);
    } else {
        wrmsr(STIMER_CONFIG(timer), 0);
        wrmsr(STIMER_COUNT(timer), way->expiration);
        wrmsr(STIMER_CONFIG(timer), config | STIMER_ENABLE);
    }
}

static void start_ticks(struct side *s)
{
    s->tick_last = 0;
    s->tick_period = 10000 + random(&s->seed) % 40000;
    begin(&s->way[TICKS], 1ull << ME);
    wrmsr(STIMER_COUNT(TICK), s->tick_period);
    wrmsr(STIMER_CONFIG(TICK),
          STIMER_SINT(SINT_TICK) | STIMER_PERIODIC | (random(&s->seed) & 1 ? STIMER_LAZY : 0) | STIMER_ENABLE);
}

/* With it off, and what is on its way taken, there is no wake-up by it. */
static void stop_ticks(struct side *s)
{
    wrmsr(STIMER_CONFIG(TICK), 0);
    while (apic_bit(APIC_IRR, VEC_MESSAGE(SINT_TICK))) {
        pause();
    }
    take_left(s);
    s->way[TICKS].on = false;
}

static void start_shots(struct side *s)
{
    u64 config = STIMER_DIRECT | STIMER_VECTOR(VEC_SHOT);
    u64 count;

    s->shot_base = irq_count(VEC_SHOT);
    s->shot_period = random(&s->seed) & 3 ? 0 : 2000 + random(&s->seed) % 8000;
    s->shots_wanted = s->shot_period ? 1 + (random(&s->seed) & 3) : 1;
    s->shot_start = ref_time();
    s->way[SHOTS].expiration = s->shot_start + random(&s->seed) % 5000;
    count = s->shot_period ? s->shot_period : s->way[SHOTS].expiration;
    begin(&s->way[SHOTS], 1ull << ME);
    wrmsr(STIMER_CONFIG(SHOT), config | STIMER_AUTO_ENABLE | (s->shot_period ? STIMER_PERIODIC : 0));
    wrmsr(STIMER_COUNT(SHOT), count);
}

static void end_shots(struct side *s)
{
    u64 least = s->shot_start, now;
    u32 had;

    if (s->shot_period) {
        wrmsr(STIMER_CONFIG(SHOT), 0);
        while (apic_bit(APIC_IRR, VEC_SHOT)) {
            pause();
        }
    }
    had = irq_count(VEC_SHOT) - s->shot_base;
    now = ref_time();
    for (u32 i = 0; i < had && s->shot_period; i++) {
        least += s->shot_period;
    }
    if (!s->shot_period) {
        least = s->way[SHOTS].expiration;
    }
    if (now < least || (!s->shot_period && had != 1)) {
        failed("processor %u: %u interrupts of the direct timer, the last one at %llu, due at %llu", ME, had,
               (unsigned long long)now, (unsigned long long)least);
    }
}

static void start_ipi(struct side *s)
{
    u32 target = random(&s->seed) % cpu_count;

    s->ipis[0][target]++;
    begin(&s->way[BY_ICR], 1ull << target);
    if (use_assist && random(&s->seed) & 1) {
        wrmsr(MSR_ICR, (u64)target << (apic_x2 ? 32 : 56) | 0x4000 | VEC_ICR(ME));
    } else {
        apic_ipi(target, 0x4000u | VEC_ICR(ME));
    }
}

static void start_call(struct side *s)
{
    u64 all = (1ull << cpu_count) - 1, mask = random(&s->seed) & all, status;
    u32 form = random(&s->seed) % (use_xmm ? 5 : 4);

    if (form == 3) {
        mask = all;
    }
    for (u32 i = 0; i < cpu_count; i++) {
        s->ipis[1][i] += mask >> i & 1;
    }
    begin(&s->way[BY_CALL], mask);
    if (form == 0) {
        status = hypercall(HV_SEND_IPI | HV_FAST, VEC_CALL(ME), mask);
    } else if (form == 1) {
        status = hypercall_with(HV_SEND_IPI, (u64[]){VEC_CALL(ME), mask}, 2);
    } else if (form == 2) {
        status = hypercall_with(HV_SEND_IPI_EX | HV_VARHEAD(1), (u64[]){VEC_CALL(ME), VP_SET_SPARSE, 1, mask}, 4);
    } else if (form == 3) {
        status = hypercall_with(HV_SEND_IPI_EX, (u64[]){VEC_CALL(ME), VP_SET_ALL, 0}, 3);
    } else {
        status = hypercall_xmm(HV_SEND_IPI_EX | HV_VARHEAD(1), (u64[]){VEC_CALL(ME), VP_SET_SPARSE, 1, mask}, 4);
    }
    if (HV_STATUS(status) != HV_SUCCESS) {
        failed("processor %u: form %u of the IPI hypercall: status %u", ME, form, HV_STATUS(status));
    }
}

/* Nobody has more IPIs than were sent to it. */
static void check_ipis(struct side *s, bool call)
{
    for (u32 i = 0; i < cpu_count; i++) {
        u32 got = cpu_at(i)->irqs[call ? VEC_CALL(ME) : VEC_ICR(ME)];

        if (got != s->ipis[call][i]) {
            failed("processor %u has %u %ss of processor %u, who has sent %u", i, got,
                   kind_names[call ? BY_CALL : BY_ICR], ME, s->ipis[call][i]);
        }
    }
}

static void start_answer(struct side *s)
{
    u32 target = random(&s->seed) % cpu_count;

    s->way[ANSWER].expiration = sides[target].answers + 1;
    begin(&s->way[ANSWER], 1ull << target);
    if (vmbus_contact(target) != HV_SUCCESS) {
        /* Its port is busy for a moment. */
        s->way[ANSWER].on = false;
        s->way[ANSWER].started--;
    }
}

static void flush(struct side *s)
{
    u64 words[] = {0, FLUSH_ALL_SPACES, random(&s->seed), WINDOW | 1};
    u64 status;

    if (random(&s->seed) & 1) {
        words[1] |= FLUSH_ALL_PROCESSORS;
    }
    if (random(&s->seed) & 1) {
        words[1] |= random(&s->seed) & FLUSH_NON_GLOBAL_ONLY;
        status = hypercall_with(HV_FLUSH_SPACE, words, 3);
    } else {
        status = hypercall_with(HV_FLUSH_LIST | HV_REPS(1), words, 4);
    }
    if (HV_STATUS(status) != HV_SUCCESS) {
        failed("processor %u: a flush hypercall: status %u", ME, HV_STATUS(status));
    }
    s->flushes++;
}

static void one_round(struct side *s, bool more)
{
    for (enum kind kind = 0; kind < KINDS; kind++) {
        struct way *way = &s->way[kind];

        if (way->on) {
            if (!there(ME, kind)) {
                if (kind == TICKS && (!more || !(random(&s->seed) & 127))) {
                    stop_ticks(s);
                }
                continue;
            }
            if (kind == SHOTS) {
                end_shots(s);
            } else if (kind == BY_ICR || kind == BY_CALL) {
                check_ipis(s, kind == BY_CALL);
            }
            way->on = false;
        }
        if (!more || random(&s->seed) & 3) {
            continue;
        }
        if (kind == MESSAGE_0 || kind == MESSAGE_3) {
            start_message(s, kind == MESSAGE_0 ? 0 : 3);
        } else if (kind == TICKS && !(random(&s->seed) & 15)) {
            start_ticks(s);
        } else if (kind == SHOTS && use_direct) {
            start_shots(s);
        } else if (kind == BY_ICR) {
            start_ipi(s);
        } else if (kind == BY_CALL && use_calls) {
            start_call(s);
        } else if (kind == ANSWER && ME == 0 && option("vmbus")) {
            start_answer(s);
        }
    }
}

/*
 * Sleep until an interrupt. There is always one to come: that of a timer that is under way. If it is lost, or the
 * wake-up is, the others find it, unless it is the only processor.
 */
static void sleep_a_while(struct side *s)
{
    take_left(s);
    irq_disable();
    if (!s->left && !stop && s->way[MESSAGE_0].on && !there(ME, MESSAGE_0)) {
        s->sleeps++;
        if (use_idle && random(&s->seed) & 1) {
            rdmsr(MSR_GUEST_IDLE); /* wakes up although interrupts are disabled */
        } else {
            irq_wait();
        }
    }
    irq_enable();
}

static void progress(u64 *next)
{
    u64 sums[KINDS] = {0}, sleeps = 0, flushes = 0, lazy = 0;

    if (ref_time() < *next) {
        return;
    }
    *next += 5000 * MS;
    for (u32 i = 0; i < cpu_count; i++) {
        for (enum kind kind = 0; kind < KINDS; kind++) {
            sums[kind] += kind == TICKS ? sides[i].taken[TICK] : sides[i].way[kind].started;
        }
        sleeps += sides[i].sleeps;
        flushes += sides[i].flushes;
        lazy += sides[i].lazy;
    }
    note("%llu and %llu timer messages, %llu periodic, %llu direct, %llu IPIs by ICR, %llu by hypercall, %llu answers "
         "of VMBus; %llu times asleep, %llu flushes, %llu EOIs omitted",
         (unsigned long long)sums[0], (unsigned long long)sums[1], (unsigned long long)sums[2],
         (unsigned long long)sums[3], (unsigned long long)sums[4], (unsigned long long)sums[5],
         (unsigned long long)sums[6], (unsigned long long)sleeps, (unsigned long long)flushes,
         (unsigned long long)lazy);
}

static bool anything_under_way(const struct side *s)
{
    bool any = s->left;

    for (enum kind kind = 0; kind < KINDS; kind++) {
        any |= s->way[kind].on;
    }
    return any;
}

static void processor(void *arg)
{
    struct side *s = &sides[ME];
    u64 next = ref_time();
    u32 rounds = 0;

    (void)arg;
    s->seed = ((u32)option_number("seed", 1) * 16 + ME + 1) * 2654435761u | 1;
    s->irq_seed = s->seed * 2654435761u | 1;
    hv_synic_start();
    if (use_assist) {
        wrmsr(MSR_VP_ASSIST_PAGE, (uintptr_t)my_pages()->assist | 1);
    }
    for (u32 sint = SINT_VMBUS; sint <= SINT_AUTO; sint++) {
        wrmsr(SINT(sint), VEC_MESSAGE(sint) | (sint == SINT_AUTO ? SINT_AUTO_EOI : 0));
    }
    barrier_wait(&meeting, cpu_count);
    while (!stop && ref_time() < end) {
        one_round(s, true);
        switch (random(&s->seed) % 16) {
        case 0 ... 3:
            sleep_a_while(s);
            break;
        case 4 ... 7:
            take_left(s);
            break;
        case 8:
            if (use_flush) {
                flush(s);
            }
            break;
        case 9:
            apic_write(APIC_TPR, random(&s->seed) & 0xf0);
            pause();
            apic_write(APIC_TPR, 0);
            break;
        default:
            pause();
        }
        if (!(rounds++ & 63)) {
            look_for_lost();
        }
        if (ME == 0) {
            progress(&next);
        }
    }
    s->ending = true;
    /* What is still under way has to arrive. */
    while (!stop && anything_under_way(s)) {
        take_left(s);
        one_round(s, false);
        look_for_lost();
        pause();
    }
    barrier_wait(&meeting, cpu_count);
    if (use_assist) {
        wrmsr(MSR_VP_ASSIST_PAGE, 0);
    }
    hv_synic_stop();
}

/* Each message is worth one interrupt at most, and there is no interrupt of a vector that nobody has. */
static void check_strays(u32 cpu)
{
    const struct side *s = &sides[cpu];
    const struct cpu *c = cpu_at(cpu);
    u32 strays = 0;

    for (u32 v = 32; v < 256; v++) {
        bool known = v == VEC_SHOT || v == VEC_WAKE || v == VEC_SPURIOUS;

        known |= v >= VEC_MESSAGE(SINT_VMBUS) && v <= VEC_MESSAGE(SINT_AUTO);
        known |= v >= VEC_ICR(0) && v < VEC_ICR(cpu_count);
        known |= v >= VEC_CALL(0) && v < VEC_CALL(cpu_count);
        strays += known ? 0 : c->irqs[v];
    }
    check_eq(strays, 0, "processor %u: interrupts of other vectors", cpu);
    for (u32 sint = SINT_VMBUS; sint <= SINT_AUTO; sint++) {
        check(c->irqs[VEC_MESSAGE(sint)] <= s->messages[sint], "processor %u: SINT %u: %u interrupts for %llu messages",
              cpu, sint, c->irqs[VEC_MESSAGE(sint)], (unsigned long long)s->messages[sint]);
    }
    check(s->empty <= s->polled, "processor %u: %u interrupts had no message, which was taken before them", cpu,
          s->empty);
    if (c->irqs[VEC_SPURIOUS]) {
        note("processor %u: %u spurious interrupts, as TPR may give", cpu, c->irqs[VEC_SPURIOUS]);
    }
}

SUITE(soak)
{
    u64 none = 0;

    if (!has_feature("synic") || !has_feature("stimer") || !has_feature("time")) {
        bail_out("soak needs hv-synic, hv-stimer and hv-time");
    }
    if (cpu_count > SOAK_CPUS) {
        bail_out("soak has vectors for %u processors", SOAK_CPUS);
    }
    use_direct = has_feature("stimer-direct");
    use_calls = has_feature("ipi");
    use_flush = has_feature("tlbflush");
    use_assist = has_feature("vapic");
    use_idle = has_feature("guest-idle");
    use_xmm = has_feature("xmm-input");
    for (u32 v = VEC_MESSAGE(0); v <= VEC_MESSAGE(15); v++) {
        irq_handler((u8)v, message_interrupt);
        irq_no_eoi((u8)v, true);
    }
    irq_handler(VEC_SHOT, other_interrupt);
    irq_no_eoi(VEC_SHOT, true);
    for (u32 i = 0; i < cpu_count; i++) {
        irq_handler(VEC_ICR(i), other_interrupt);
        irq_no_eoi(VEC_ICR(i), true);
        irq_handler(VEC_CALL(i), other_interrupt);
        irq_no_eoi(VEC_CALL(i), true);
    }
    hv_start();
    note("seed %llu", (unsigned long long)option_number("seed", 1));
    end = ref_time() + option_number("seconds", 15) * 1000 * MS;
    on_all(processor, NULL);
    progress(&none);
    /* What was stopped half-way has no balance. */
    for (u32 i = 0; i < cpu_count && !failures; i++) {
        check_strays(i);
        check(sides[i].taken[0] && sides[i].taken[3] && sides[i].taken[TICK], "processor %u: timers went on", i);
    }
    check_eq(failures, 0, "none is lost, none comes twice");
    hv_stop();
}
