/* SPDX-License-Identifier: MIT */
/*
 * checkpoint: Hyper-V state over save and load. All processors bring themselves into a state and stay in it, the
 * machine stops (checkpoint() of the framework), the harness saves and loads it, or does nothing; then the program
 * checks that all of the state is still there, and what becomes of it.
 *
 * Also run without any save: then the same checks have to hold.
 *
 * A state that depends on the time, such as a timer that has not expired, may be over before the machine stops. The
 * program sees that afterwards, and tries again with more time.
 */

#include "lib/hyperv.h"

/* One priority class for each SINT; higher SINTs first. */
#define VEC_OF(sint) ((u8)(0x31 + 0x10 * (sint)))
#define VEC_LOW 0xb5    /* of the IPIs of the lazy EOI: the lower one */
#define VEC_LAZY 0xc5
#define VEC_ONE_SHOT 0xd5 /* stimers in direct mode */
#define VEC_PERIODIC 0xd6
#define VEC_MEET 0xe5

#define ME (this_cpu()->index)
#define TRIES 6u
#define LOG 256u
#define NO_EOI_REQUIRED 1u

struct expiry {
    u32 sint, index;
    u64 expiration;
};

/* What one processor has had, and remembers over a save. */
struct record {
    volatile u32 count, early, strange;
    volatile u32 met;
    volatile bool asleep;
    u32 expected, wrong;
    struct expiry log[LOG];
    u64 ref, runtime;
    u64 sint[16], stimer[8], pages[3], crash[5];
} __attribute__((aligned(64)));

static struct record records[MAX_CPUS];
static struct barrier meeting;
static volatile bool missed; /* the state was over before the machine stopped */

static struct record *my(void)
{
    return &records[ME];
}

static volatile u32 *my_assist(void)
{
    return (volatile u32 *)my_pages()->assist;
}

/*
 * A check that prints nothing if it passes: there are some thousand of them, and eight processors on two real ones
 * would spend their time with printing. done_with() has the line for all of a state.
 */
#define expect(condition, ...)                                                                                       \
    ({                                                                                                               \
        bool good_ = (condition);                                                                                    \
        my()->expected++;                                                                                            \
        if (!good_) {                                                                                                \
            my()->wrong++;                                                                                           \
            check(false, __VA_ARGS__);                                                                               \
        }                                                                                                            \
        good_;                                                                                                       \
    })
#define expect_eq(got, wanted, ...)                                                                                  \
    ({                                                                                                               \
        u64 got_ = (got), wanted_ = (wanted);                                                                        \
        my()->expected++;                                                                                            \
        if (got_ != wanted_) {                                                                                       \
            my()->wrong++;                                                                                           \
            check_eq(got_, wanted_, __VA_ARGS__);                                                                    \
        }                                                                                                            \
        got_ == wanted_;                                                                                             \
    })

static void done_with(const char *state)
{
    struct record *r = my();

    check(r->wrong == 0 && r->expected != 0, "%s: processor %u: %u things are as they should be, %u are not", state, ME,
          r->expected - r->wrong, r->wrong);
    r->expected = r->wrong = 0;
}

static void met(u8 vector)
{
    (void)vector;
    my()->met++;
}

/*
 * Wait for all others, asleep, so that processors that wait do not hold up those that work. With interrupts on. Each
 * one but the last gets an interrupt, and goes on with it, so that none arrives later and changes what is tested.
 */
static void together(void)
{
    static volatile u32 arrived;
    u32 before = my()->met;

    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST) == cpu_count) {
        arrived = 0;
        mfence();
        for (u32 i = 0; i < cpu_count; i++) {
            if (i != ME) {
                apic_ipi(i, 0x4000 | VEC_MEET);
            }
        }
        return;
    }
    irq_disable();
    while (my()->met == before) {
        irq_wait();
    }
    irq_enable();
}

enum waiting { RUNNING, IN_HLT, IN_GUEST_IDLE };

/* Half of the others asleep, in one way or the other. */
static enum waiting asleep(u32 cpu)
{
    return !(cpu & 1) ? RUNNING : cpu & 2 && has_feature("guest-idle") ? IN_GUEST_IDLE : IN_HLT;
}

static void wait_asleep(enum waiting how, const volatile u32 *saves, u32 before)
{
    irq_disable();
    my()->asleep = true;
    if (*saves == before && how == IN_HLT) {
        irq_wait();
    } else if (*saves == before) {
        rdmsr(MSR_GUEST_IDLE); /* wakes up although interrupts are disabled */
    }
    my()->asleep = false;
    irq_enable();
}

/*
 * The machine stops with all processors in here. Those that run have interrupts on or off, as they are; those that
 * sleep need a timer that wakes them.
 */
static void save_as(const char *name, bool half_asleep)
{
    static volatile u32 saves;
    u32 before = saves;
    enum waiting how = half_asleep ? asleep(ME) : RUNNING;

    barrier_wait(&meeting, cpu_count);
    if (ME == 0) {
        for (u32 i = 1; i < cpu_count && half_asleep; i++) {
            while (asleep(i) != RUNNING && !records[i].asleep) {
                pause();
            }
        }
        if (half_asleep) {
            delay(MS); /* from "is about to" to "does" */
        }
        checkpoint(name);
        __atomic_store_n(&saves, before + 1, __ATOMIC_SEQ_CST);
    }
    while (saves == before) {
        if (how == RUNNING) {
            pause();
        } else {
            wait_asleep(how, &saves, before);
        }
    }
}

static void save_here(const char *name)
{
    save_as(name, false);
}

static void empty(u32 sint)
{
    my_slot(sint)->type = 0;
    mfence();
}

/* An interrupt of a SINT: take the message, ask for the next one if there is one (TLFS 11.9.2). */
static void take(u8 vector)
{
    u32 sint = (u32)(vector - VEC_OF(0)) / 0x10;
    volatile struct hv_message *slot = my_slot(sint);
    struct record *r = my();

    if (slot->type == MSG_TIMER_EXPIRED) {
        u64 now = ref_time();
        struct expiry *e = &r->log[r->count % LOG];

        e->sint = sint;
        e->index = slot->timer.index;
        e->expiration = slot->timer.expiration;
        r->early += now < e->expiration || slot->timer.delivery < e->expiration || slot->timer.delivery > now;
        r->count++;
    } else if (slot->type) {
        r->strange++;
    }
    if (slot->type) {
        bool more;

        slot->type = 0;
        mfence();
        more = slot->flags & MSG_FLAG_PENDING;
        if (more) {
            wrmsr(MSR_EOM, 0);
        }
    }
}

/* How many messages there were of this timer since the log had so many; the first of them goes to *first. */
static u32 expiries(u32 index, u32 since, u64 *first)
{
    struct record *r = my();
    u32 found = 0;

    for (u32 i = since; i != r->count; i++) {
        const struct expiry *e = &r->log[i % LOG];

        if (e->index == index && !found++ && first) {
            *first = e->expiration;
        }
    }
    return found;
}

static void set_timer(u32 timer, u64 count, u64 config)
{
    wrmsr(STIMER_CONFIG(timer), 0);
    wrmsr(STIMER_COUNT(timer), count);
    wrmsr(STIMER_CONFIG(timer), config | STIMER_ENABLE);
}

static void stop_timers(void)
{
    for (u32 i = 0; i < 4; i++) {
        wrmsr(STIMER_CONFIG(i), 0);
        wrmsr(STIMER_COUNT(i), 0);
    }
}

/* As irq_reset(), but for the vectors of this program, of which none arrives while this is called. */
static void reset_vectors(void)
{
    for (u32 v = 0x30; v < VEC_MEET; v++) {
        irq_handler((u8)v, NULL);
        irq_no_eoi((u8)v, false);
    }
    for (u32 sint = 1; sint < 9; sint++) {
        irq_handler(VEC_OF(sint), take);
    }
}

/* No timer, no interrupt on its way, no message; then no count. */
static void begin(void)
{
    struct record *r = my();

    stop_timers();
    irq_enable();
    for (u32 sint = 1; sint < 9; sint++) {
        wrmsr(SINT(sint), SINT_MASKED);
        empty(sint);
    }
    together();
    if (ME == 0) {
        reset_vectors();
        missed = false;
    }
    for (u32 v = 0x30; v < VEC_MEET; v++) {
        this_cpu()->irqs[v] = 0;
    }
    r->count = r->early = r->strange = 0;
    together();
}

/* --- registers and pages --- */

static u8 pattern(u32 page, u32 offset)
{
    return (u8)(offset * 7 + (offset >> 8) + 31 * page + 5 * ME + 1);
}

/* What of the pages is nobody's but the guest's: SIEFP; SIMP from SINT12 on; half of the assist page. */
static u8 *kept_page(u32 page, u32 *from)
{
    struct hv_pages *pages = my_pages();

    *from = page == 0 ? 0 : page == 1 ? 12 * 256 : 2048;
    return page == 0 ? pages->siefp : page == 1 ? pages->simp : pages->assist;
}

static void fill_pages(void)
{
    for (u32 page = 0; page < 3; page++) {
        u32 from;
        u8 *at = kept_page(page, &from);

        for (u32 i = from; i < PAGE_SIZE; i++) {
            at[i] = pattern(page, i);
        }
    }
}

static void check_pages(void)
{
    static const char *const names[] = {"SIEFP page", "SIMP page", "VP assist page"};

    for (u32 page = 0; page < 3; page++) {
        u32 from, wrong = 0;
        const u8 *at = kept_page(page, &from);

        for (u32 i = from; i < PAGE_SIZE; i++) {
            wrong += at[i] != pattern(page, i);
        }
        expect_eq(wrong, 0, "processor %u: bytes of the %s that are not as they were", ME, names[page]);
    }
}

static void remember(void)
{
    struct record *r = my();

    for (u32 i = 0; i < 16; i++) {
        r->sint[i] = rdmsr(SINT(i));
    }
    for (u32 i = 0; i < 8; i++) {
        r->stimer[i] = rdmsr(MSR_STIMER0_CONFIG + i);
    }
    for (u32 i = 0; i < 5 && has_feature("crash"); i++) {
        r->crash[i] = rdmsr(MSR_CRASH_P0 + i);
    }
    r->pages[0] = rdmsr(MSR_SIEFP);
    r->pages[1] = rdmsr(MSR_SIMP);
    r->pages[2] = has_feature("vapic") ? rdmsr(MSR_VP_ASSIST_PAGE) : 0;
    if (has_feature("runtime")) {
        r->ref = ref_time();
        r->runtime = rdmsr(MSR_VP_RUNTIME);
    }
}

/* The configuration that no state of the program changes while it waits. */
static void check_registers(const char *state, u64 scontrol)
{
    struct record *r = my();

    for (u32 i = 0; i < 16; i++) {
        expect_eq(rdmsr(SINT(i)), r->sint[i], "%s: processor %u: SINT%u", state, ME, i);
    }
    for (u32 i = 0; i < 8; i++) {
        /* CONFIG's Enable goes off when a one-shot timer expires. */
        u64 mask = i & 1 ? ~0ull : ~STIMER_ENABLE;

        expect_eq(rdmsr(MSR_STIMER0_CONFIG + i) & mask, r->stimer[i] & mask, "%s: processor %u: STIMER%u_%s", state,
                  ME, i / 2, i & 1 ? "COUNT" : "CONFIG");
    }
    for (u32 i = 0; i < 5 && has_feature("crash"); i++) {
        expect_eq(rdmsr(MSR_CRASH_P0 + i), r->crash[i], "%s: processor %u: CRASH_P%u", state, ME, i);
    }
    expect_eq(rdmsr(MSR_SCONTROL), scontrol, "%s: processor %u: SCONTROL", state, ME);
    expect_eq(rdmsr(MSR_SIEFP), r->pages[0], "%s: processor %u: SIEFP", state, ME);
    expect_eq(rdmsr(MSR_SIMP), r->pages[1], "%s: processor %u: SIMP", state, ME);
    if (has_feature("vapic")) {
        expect_eq(rdmsr(MSR_VP_ASSIST_PAGE), r->pages[2], "%s: processor %u: VP_ASSIST_PAGE", state, ME);
    }
    if (has_feature("vpindex")) {
        expect_eq(rdmsr(MSR_VP_INDEX), ME, "%s: processor %u: VP_INDEX", state, ME);
    }
    expect_eq(rdmsr(MSR_GUEST_OS_ID), OS_ID, "%s: processor %u: GUEST_OS_ID", state, ME);
    expect_eq(rdmsr(MSR_HYPERCALL) & ~2ull, (uintptr_t)hypercall_page | 1, "%s: processor %u: HYPERCALL", state, ME);

    if (has_feature("runtime")) {
        u64 runtime = rdmsr(MSR_VP_RUNTIME), ref = ref_time();

        expect(runtime >= r->runtime, "%s: processor %u: VP_RUNTIME does not go back", state, ME);
        /* Each of the two is rounded. */
        expect(runtime - r->runtime <= ref - r->ref + 2, "%s: processor %u: VP_RUNTIME does not jump: %llu in %llu",
              state, ME, (unsigned long long)(runtime - r->runtime), (unsigned long long)(ref - r->ref));
    }
}

static void registers(void)
{
    struct record *r = my();
    u64 tpr = 0x20 | (ME & 7), period = 4 * MS, start, end;
    bool direct = has_feature("stimer-direct");

    begin();
    for (u32 i = 9; i < 16; i++) {
        wrmsr(SINT(i), SINT_MASKED | VEC_OF(i & 7) | (i & 1 ? SINT_AUTO_EOI : SINT_POLLING));
    }
    for (u32 i = 0; i < 3; i++) {
        wrmsr(STIMER_CONFIG(i), STIMER_SINT(9 + i) | (i == 1 ? STIMER_PERIODIC | STIMER_LAZY : 0));
        wrmsr(STIMER_COUNT(i), 0x0123456789abcdefull + ME * 16 + i);
    }
    if (has_feature("crash") && ME == cpu_count - 1) {
        for (u32 i = 0; i < 5; i++) {
            wrmsr(MSR_CRASH_P0 + i, 0xfedcba9876543210ull * (i + 1));
        }
    }
    apic_write(APIC_TPR, (u32)tpr);
    fill_pages();
    start = ref_time();
    if (direct) {
        set_timer(3, period, STIMER_PERIODIC | STIMER_DIRECT | STIMER_VECTOR(VEC_PERIODIC));
        expect(wait_for(irq_count(VEC_PERIODIC)), "processor %u: periodic timer in direct mode", ME);
    }
    together();
    remember();

    save_here("registers");

    check_registers("registers", 1);
    check_pages();
    expect_eq(apic_read(APIC_TPR), tpr, "processor %u: TPR of the APIC", ME);
    if (has_feature("vapic")) {
        expect_eq(rdmsr(MSR_TPR), tpr, "processor %u: Hyper-V's TPR", ME);
    }
    expect_eq(HV_STATUS(hypercall(HV_SIGNAL_EVENT | HV_FAST, 0x12345, 0)), HV_INVALID_CONNECTION_ID,
             "processor %u: the hypercall page works", ME);
    if (direct) {
        u32 before = irq_count(VEC_PERIODIC), had;

        expect(wait_for(irq_count(VEC_PERIODIC) >= before + 3), "processor %u: the periodic direct timer goes on", ME);
        had = irq_count(VEC_PERIODIC);
        end = ref_time();
        for (u32 i = 0; i < had; i++) {
            start += period;
        }
        expect(start <= end, "processor %u: and not more often than it should: %u, %llu too early", ME, had,
              (unsigned long long)(start - end));
        wrmsr(STIMER_CONFIG(3), 0);
    }
    apic_write(APIC_TPR, 0);
    for (u32 i = 9; i < 16; i++) {
        wrmsr(SINT(i), SINT_MASKED);
    }
    expect_eq(r->strange, 0, "processor %u: no other message", ME);
}

/* --- time --- */

struct moment {
    u64 least, tsc, page, most;
};

struct reference_tsc {
    volatile u32 sequence;
    u32 reserved;
    volatile u64 scale, offset;
};

static u64 multiply_high(u64 a, u64 b)
{
    u64 al = (u32)a, ah = a >> 32, bl = (u32)b, bh = b >> 32;
    u64 low = al * bl, mid1 = al * bh, mid2 = ah * bl;
    u64 mid = (low >> 32) + (u32)mid1 + (u32)mid2;

    return ah * bh + (mid1 >> 32) + (mid2 >> 32) + (mid >> 32);
}

static struct moment now(void)
{
    const struct reference_tsc *page = (const void *)tsc_page;
    struct moment m;

    m.least = ref_time();
    m.tsc = rdtsc();
    m.page = page->sequence ? multiply_high(m.tsc, page->scale) + page->offset : 0;
    m.most = ref_time();
    return m;
}

static void check_page(const struct moment *m, const char *when)
{
    expect(m->page >= m->least && m->page <= m->most, "processor %u: the TSC page %s: %llu is within %llu and %llu", ME,
          when, (unsigned long long)m->page, (unsigned long long)m->least, (unsigned long long)m->most);
}

/*
 * The harness knows how long the machine ran between the two stops: it gets the counter before ("reference time
 * before") and after.
 */
static void the_time(void)
{
    struct moment before, after;
    u64 hz, tsc;

    begin();
    if (ME == 0) {
        wrmsr(MSR_REFERENCE_TSC, (uintptr_t)tsc_page | 1);
        checkpoint("mark");
    }
    together();
    before = now();
    if (ME == 0) {
        print("reference time before %llu", (unsigned long long)before.least);
    }
    save_here("time");
    after = now();
    if (ME == 0) {
        print("reference time after %llu", (unsigned long long)after.least);
        expect_eq(rdmsr(MSR_REFERENCE_TSC), (uintptr_t)tsc_page | 1, "REFERENCE_TSC");
    }
    check_page(&before, "before");
    check_page(&after, "after");
    expect(after.least >= before.most, "processor %u: the reference counter does not go back", ME);
    expect(after.tsc > before.tsc, "processor %u: the TSC does not go back", ME);
    if (has_feature("frequencies")) {
        /* The counter's ticks are 100 ns; one more or less is rounding. */
        hz = rdmsr(MSR_TSC_FREQUENCY);
        tsc = (after.tsc - before.tsc) * 10000000;
        expect(tsc + 2 * hz >= (after.least - before.most) * hz && tsc <= (after.most - before.least + 2) * hz,
              "processor %u: TSC and reference counter have gone on by the same", ME);
    }
    together();
    if (ME == 0) {
        wrmsr(MSR_REFERENCE_TSC, 0);
    }
}

/* --- timers that have not expired --- */

static bool in_phase(u64 expiration, u64 base, u64 period)
{
    while (base < expiration) {
        base += period;
    }
    return base == expiration;
}

static void check_phase(u32 index, u32 since, u64 period, const char *name)
{
    struct record *r = my();
    u64 base = 0, last = 0;
    u32 wrong = 0;

    expiries(index, 0, &base);
    for (u32 i = since; i != r->count; i++) {
        const struct expiry *e = &r->log[i % LOG];

        if (e->index == index) {
            wrong += !in_phase(e->expiration, base, period) || e->expiration <= last;
            last = e->expiration;
        }
    }
    expect_eq(wrong, 0, "processor %u: %s: expirations that are not a whole number of periods after the first", ME,
             name);
}

static bool timers_once(u64 more)
{
    struct record *r = my();
    u64 period = 20 * MS, lazy = 33 * MS, expiration, resumed, got = 0;
    bool direct = has_feature("stimer-direct"), caught;
    u32 since;

    begin();
    for (u32 i = 3; i < 6; i++) {
        wrmsr(SINT(i), VEC_OF(i));
    }
    set_timer(1, period, STIMER_PERIODIC | STIMER_SINT(4));
    set_timer(2, lazy, STIMER_PERIODIC | STIMER_LAZY | STIMER_SINT(5));
    if (!wait_for(expiries(1, 0, NULL) && expiries(2, 0, NULL))) {
        expect(false, "processor %u: periodic timers begin", ME);
    }
    together();
    expiration = ref_time() + more;
    set_timer(0, expiration, STIMER_SINT(3));
    if (direct) {
        set_timer(3, expiration + 1, STIMER_DIRECT | STIMER_VECTOR(VEC_ONE_SHOT));
    }
    remember();

    save_as("timers", true);

    since = r->count;
    resumed = ref_time();
    caught = resumed < expiration;
    if (!caught) {
        missed = true;
    }
    together();
    if (missed) {
        together();
        return false;
    }
    check_registers("timers", 1);
    expect(wait_for(expiries(0, 0, NULL)), "processor %u: a one-shot timer that was armed expires", ME);
    expect_eq(expiries(0, 0, &got), 1, "processor %u: once", ME);
    expect_eq(got, expiration, "processor %u: at its time", ME);
    expect_eq(rdmsr(STIMER_CONFIG(0)) & STIMER_ENABLE, 0, "processor %u: and is disabled then", ME);
    if (direct) {
        expect(wait_for(irq_count(VEC_ONE_SHOT)), "processor %u: a timer in direct mode that was armed expires", ME);
        expect(ref_time() >= expiration + 1, "processor %u: not early", ME);
    }
    expect(wait_for(expiries(1, since, NULL) >= 3), "processor %u: a periodic timer goes on", ME);
    expect(wait_for(expiries(2, since, NULL) >= 3), "processor %u: a lazy periodic timer goes on", ME);
    wrmsr(STIMER_CONFIG(1), 0);
    wrmsr(STIMER_CONFIG(2), 0);
    check_phase(1, 0, period, "periodic timer");
    check_phase(2, 0, lazy, "lazy periodic timer");
    expect_eq(expiries(0, 0, NULL), 1, "processor %u: the one-shot timer does not expire again", ME);
    expect_eq(irq_count(VEC_ONE_SHOT), direct, "processor %u: nor does that in direct mode", ME);
    expect_eq(r->early, 0, "processor %u: no timer is early", ME);
    together();
    return true;
}

static void until_caught(bool (*once)(u64 more), const char *name)
{
    u64 more = 100 * MS;
    u32 i = 0;

    while (!once(more) && ++i < TRIES) {
        more *= 2;
    }
    if (ME == 0) {
        check(i < TRIES, "%s: the machine was stopped in this state (%u tries before)", name, i);
    }
}

/* --- timers that have expired --- */

static void expired(void)
{
    struct record *r = my();
    volatile struct hv_message *two = my_slot(VMBUS_SINT), *three = my_slot(3), *four = my_slot(4);
    bool direct = has_feature("stimer-direct");
    u64 first = ref_time() - 9, second = first - 1, third = first - 2, got = 0;
    bool vmbus = option("vmbus") && ME == cpu_count - 1;

    begin();
    irq_disable();
    wrmsr(SINT(3), VEC_OF(3));
    wrmsr(SINT(4), VEC_OF(4));
    set_timer(0, first, STIMER_SINT(3));
    expect(wait_for(three->type), "processor %u: a message is in its slot", ME);
    set_timer(1, second, STIMER_SINT(3));
    expect(wait_for(three->flags & MSG_FLAG_PENDING), "processor %u: another one waits for the slot", ME);
    four->type = 1;
    mfence();
    set_timer(2, third, STIMER_SINT(4));
    expect(wait_for(four->flags & MSG_FLAG_PENDING), "processor %u: one waits for another slot", ME);
    if (direct) {
        set_timer(3, third, STIMER_DIRECT | STIMER_VECTOR(VEC_ONE_SHOT));
        expect(wait_for(apic_bit(APIC_IRR, VEC_ONE_SHOT)), "processor %u: an interrupt in direct mode is requested",
              ME);
    }
    expect(wait_for(apic_bit(APIC_IRR, VEC_OF(3))), "processor %u: the SINT's interrupt is requested", ME);
    if (vmbus) {
        two->word[0] = 0;
        two->type = 1;
        mfence();
        expect_eq(vmbus_contact(ME), HV_SUCCESS, "processor %u: a message to VMBus", ME);
        expect(wait_for(two->flags & MSG_FLAG_PENDING), "processor %u: its answer waits for the slot", ME);
    }
    remember();

    save_here("expired");

    check_registers("expired", 1);
    expect_eq(three->type, MSG_TIMER_EXPIRED, "processor %u: the message is still in its slot", ME);
    expect_eq(three->timer.index, 0, "processor %u: that of timer 0", ME);
    expect_eq(three->timer.expiration, first, "processor %u: with its expiration time", ME);
    expect_eq(three->flags, MSG_FLAG_PENDING, "processor %u: and the pending flag", ME);
    expect_eq(four->type, 1, "processor %u: what the guest has put into a slot is not overwritten", ME);
    expect_eq(four->flags, MSG_FLAG_PENDING, "processor %u: and has the pending flag", ME);
    expect(apic_bit(APIC_IRR, VEC_OF(3)), "processor %u: the SINT's interrupt is still requested", ME);
    expect(!apic_bit(APIC_IRR, VEC_OF(4)), "processor %u: and that of the other SINT is not", ME);
    expect_eq(apic_bit(APIC_IRR, VEC_ONE_SHOT), direct, "processor %u: that of the timer in direct mode is", ME);
    expect_eq(r->count, 0, "processor %u: nothing was taken", ME);
    irq_enable();
    expect(wait_for(expiries(1, 0, NULL)), "processor %u: the second message comes after the first", ME);
    expect_eq(r->count, 2, "processor %u: each once", ME);
    expiries(0, 0, &got);
    expect_eq(got, first, "processor %u: expiration time of the first", ME);
    expiries(1, 0, &got);
    expect_eq(got, second, "processor %u: expiration time of the second", ME);
    empty(4);
    wrmsr(MSR_EOM, 0);
    expect(wait_for(expiries(2, 0, NULL)), "processor %u: EOM brings the message for the other slot", ME);
    expiries(2, 0, &got);
    expect_eq(got, third, "processor %u: expiration time of the third", ME);
    delay(MS);
    expect_eq(r->count, 3, "processor %u: no message comes twice", ME);
    expect_eq(irq_count(VEC_OF(3)), 2, "processor %u: interrupts of the first SINT", ME);
    expect_eq(irq_count(VEC_OF(4)), 1, "processor %u: interrupts of the second SINT", ME);
    expect_eq(irq_count(VEC_ONE_SHOT), direct, "processor %u: interrupts in direct mode", ME);
    if (vmbus) {
        expect_eq(two->word[0], 0, "processor %u: VMBus's answer still waits", ME);
        empty(VMBUS_SINT);
        wrmsr(MSR_EOM, 0);
        expect(wait_for(two->type == 1 && two->word[0] == VMBUS_VERSION_RESPONSE),
               "processor %u: VMBus's answer comes after EOM", ME);
        empty(VMBUS_SINT);
    }
}

/* --- interrupts in service --- */

static void in_service(void)
{
    volatile struct hv_message *slot = my_slot(3);
    u64 first = ref_time() - 9, second = first - 1;

    begin();
    if (ME == 0) {
        irq_handler(VEC_OF(3), NULL);
        irq_no_eoi(VEC_OF(3), true);
        irq_no_eoi(VEC_OF(5), true);
    }
    together();
    wrmsr(SINT(2), VEC_OF(2));
    wrmsr(SINT(3), VEC_OF(3));
    wrmsr(SINT(5), VEC_OF(5) | SINT_AUTO_EOI);
    set_timer(0, first, STIMER_SINT(3));
    expect(wait_for(irq_count(VEC_OF(3)) == 1), "processor %u: an interrupt is in service", ME);
    irq_disable();
    set_timer(1, second, STIMER_SINT(3));
    expect(wait_for(slot->flags & MSG_FLAG_PENDING), "processor %u: another message waits for its EOI", ME);
    set_timer(2, first, STIMER_SINT(5));
    expect(wait_for(apic_bit(APIC_IRR, VEC_OF(5))), "processor %u: a higher one, with auto EOI, is requested", ME);
    set_timer(3, first, STIMER_SINT(2));
    expect(wait_for(apic_bit(APIC_IRR, VEC_OF(2))), "processor %u: a lower one is requested", ME);
    remember();

    save_here("in service");

    check_registers("in service", 1);
    expect(apic_bit(APIC_ISR, VEC_OF(3)), "processor %u: it is still in service", ME);
    expect(apic_bit(APIC_IRR, VEC_OF(5)), "processor %u: the higher one is still requested", ME);
    expect(apic_bit(APIC_IRR, VEC_OF(2)), "processor %u: the lower one is still requested", ME);
    expect_eq(slot->timer.expiration, first, "processor %u: the message is that of the first timer", ME);
    expect_eq(slot->flags, MSG_FLAG_PENDING, "processor %u: with the pending flag", ME);
    irq_enable();
    expect(wait_for(irq_count(VEC_OF(5)) == 1), "processor %u: the higher one arrives", ME);
    expect(!apic_bit(APIC_ISR, VEC_OF(5)), "processor %u: and is not in service after it: auto EOI", ME);
    expect_eq(irq_count(VEC_OF(2)), 0, "processor %u: the lower one does not", ME);
    empty(3);
    apic_eoi();
    expect(wait_for(slot->type && irq_count(VEC_OF(3)) == 2), "processor %u: EOI brings the message that waited", ME);
    expect_eq(slot->timer.expiration, second, "processor %u: with its expiration time", ME);
    expect_eq(slot->timer.index, 1, "processor %u: and its timer", ME);
    expect_eq(slot->flags, 0, "processor %u: none waits any longer", ME);
    empty(3);
    apic_eoi();
    expect(wait_for(irq_count(VEC_OF(2)) == 1), "processor %u: the lower one arrives after EOI", ME);
    expect(!apic_bit(APIC_ISR, VEC_OF(3)), "processor %u: nothing is in service at the end", ME);
    set_timer(2, first, STIMER_SINT(5));
    expect(wait_for(irq_count(VEC_OF(5)) == 2), "processor %u: auto EOI: the next one arrives", ME);
    delay(MS);
    expect_eq(irq_count(VEC_OF(3)), 2, "processor %u: no interrupt comes twice", ME);
    expect_eq(irq_count(VEC_OF(2)), 1, "processor %u: nor does the lower one", ME);
    expect_eq(irq_count(VEC_OF(5)), 2, "processor %u: nor that with auto EOI", ME);
}

/* --- lazy EOI --- */

static void send(u8 vector)
{
    apic_ipi(ME, 0x4000u | vector);
}

/*
 * The guest's part of it (TLFS 10.3.5): the EOI is not needed if the flag was set. One instruction tests and clears
 * it, as the host may withdraw it at any time between two.
 */
static void end_of_interrupt(void)
{
    bool was;

    __asm__ volatile("btrl $0, %0; setc %1" : "+m"(*my_assist()), "=q"(was)::"memory", "cc");
    if (!was) {
        apic_eoi();
    }
}

static void ended(u8 vector)
{
    (void)vector;
    end_of_interrupt();
}

/* Leaves an interrupt of VEC_LAZY in service, with the offer to omit its EOI, and interrupts off. */
static void begin_lazy(void)
{
    begin();
    if (ME == 0) {
        irq_no_eoi(VEC_LAZY, true);
        irq_no_eoi(VEC_LOW, true);
        irq_handler(VEC_LOW, ended);
    }
    together();
    send(VEC_LAZY);
    expect(wait_for(irq_count(VEC_LAZY) == 1), "processor %u: an interrupt", ME);
    irq_disable();
    expect_eq(*my_assist(), NO_EOI_REQUIRED, "processor %u: needs no EOI", ME);
}

/* After it is completed: nothing in service, and interrupts arrive as ever. The first of them is number "had". */
static void end_lazy(u32 had)
{
    irq_enable();
    for (u32 i = 0; i < 3; i++) {
        send(VEC_LAZY);
        expect(wait_for(irq_count(VEC_LAZY) == had + i), "processor %u: the next interrupt arrives", ME);
        end_of_interrupt();
    }
    expect(!apic_bit(APIC_ISR, VEC_LAZY), "processor %u: nothing is in service", ME);
    delay(MS / 2);
    expect_eq(irq_count(VEC_LAZY), had + 2, "processor %u: no interrupt comes twice", ME);
}

static void lazy_outstanding(void)
{
    begin_lazy();
    remember();

    save_here("lazy EOI outstanding");

    check_registers("lazy EOI outstanding", 1);
    expect_eq(*my_assist(), NO_EOI_REQUIRED, "processor %u: the offer stands", ME);
    expect(apic_bit(APIC_ISR, VEC_LAZY), "processor %u: the interrupt is in service", ME);
    if (ME & 1) {
        /* The lower one needs the EOI: the offer has to be withdrawn. */
        send(VEC_LOW);
        expect_eq(*my_assist(), 0, "processor %u: the offer is withdrawn for a lower interrupt", ME);
        irq_enable();
        delay(MS / 5);
        expect_eq(irq_count(VEC_LOW), 0, "processor %u: which does not come before the EOI", ME);
        end_of_interrupt();
        expect(wait_for(irq_count(VEC_LOW) == 1), "processor %u: but then", ME);
    } else {
        end_of_interrupt();
        expect(!apic_bit(APIC_ISR, VEC_LAZY), "processor %u: it is completed by clearing the flag", ME);
    }
    end_lazy(2);
}

static void lazy_done(void)
{
    begin_lazy();
    /* The APIC does not know of this. */
    end_of_interrupt();

    save_here("lazy EOI done");

    expect_eq(*my_assist(), 0, "processor %u: the flag stays cleared", ME);
    end_lazy(2);
}

static void lazy_withdrawn(void)
{
    begin_lazy();
    send(VEC_LAZY);
    expect_eq(*my_assist(), 0, "processor %u: the offer is withdrawn for the same interrupt", ME);

    save_here("lazy EOI withdrawn");

    expect_eq(*my_assist(), 0, "processor %u: and stays withdrawn", ME);
    expect(apic_bit(APIC_ISR, VEC_LAZY), "processor %u: the first is in service", ME);
    expect(apic_bit(APIC_IRR, VEC_LAZY), "processor %u: the second is requested", ME);
    irq_enable();
    delay(MS / 5);
    expect_eq(irq_count(VEC_LAZY), 1, "processor %u: it does not come before the EOI", ME);
    end_of_interrupt();
    expect(wait_for(irq_count(VEC_LAZY) == 2), "processor %u: but then", ME);
    end_of_interrupt();
    end_lazy(3);
}

/* --- SynIC disabled --- */

static bool disabled_once(u64 more)
{
    struct record *r = my();
    u64 expiration, far, got = 0;

    begin();
    wrmsr(SINT(3), VEC_OF(3));
    wrmsr(SINT(4), VEC_OF(4));
    expiration = ref_time() + more;
    far = expiration + 1000000 * MS;
    set_timer(0, expiration, STIMER_SINT(3));
    set_timer(1, far, STIMER_SINT(4));
    wrmsr(MSR_SCONTROL, 0);
    remember();

    save_here("SynIC disabled");

    if (ref_time() < expiration) {
        check_registers("SynIC disabled", 0);
        expect_eq(rdmsr(STIMER_CONFIG(1)), STIMER_SINT(4) | STIMER_ENABLE, "processor %u: a timer stays enabled", ME);
        expect_eq(r->count, 0, "processor %u: no message with the SynIC disabled", ME);
    }
    wrmsr(MSR_SCONTROL, 1);
    if (ref_time() >= expiration) {
        missed = true;
    }
    together();
    if (missed) {
        together();
        return false;
    }
    expect(wait_for(r->count), "processor %u: a timer expires after the SynIC is enabled again", ME);
    expiries(0, 0, &got);
    expect_eq(got, expiration, "processor %u: at its time", ME);
    expect_eq(r->count, 1, "processor %u: and no other", ME);
    expect_eq(r->early, 0, "processor %u: no timer is early", ME);
    together();
    return true;
}

/* --- the hypercall page, locked until the next reset --- */

static void locked(void)
{
    u64 value = (uintptr_t)hypercall_page | 3;

    begin();
    if (ME == 0) {
        wrmsr(MSR_HYPERCALL, value);
    }
    together();
    remember();

    save_here("hypercall page locked");

    check_registers("hypercall page locked", 1);
    expect_eq(rdmsr(MSR_HYPERCALL), value, "processor %u: HYPERCALL is locked", ME);
    together();
    if (ME == 0) {
        wrmsr(MSR_HYPERCALL, (uintptr_t)tsc_page | 1);
        wrmsr(MSR_HYPERCALL, 0);
    }
    together();
    expect_eq(rdmsr(MSR_HYPERCALL), value, "processor %u: and cannot be changed", ME);
    expect_eq(HV_STATUS(hypercall(HV_SIGNAL_EVENT | HV_FAST, 0x12345, 0)), HV_INVALID_CONNECTION_ID,
             "processor %u: the hypercall page works", ME);
}

static void processor(void *arg)
{
    bool assist = has_feature("vapic");

    (void)arg;
    hv_synic_start();
    if (assist) {
        wrmsr(MSR_VP_ASSIST_PAGE, (uintptr_t)my_pages()->assist | 1);
    }
    registers();
    done_with("registers");
    the_time();
    done_with("time");
    until_caught(timers_once, "timers");
    done_with("timers");
    expired();
    done_with("expired");
    in_service();
    done_with("in service");
    if (assist) {
        lazy_outstanding();
        done_with("lazy EOI outstanding");
        lazy_done();
        done_with("lazy EOI done");
        lazy_withdrawn();
        done_with("lazy EOI withdrawn");
    }
    until_caught(disabled_once, "SynIC disabled");
    done_with("SynIC disabled");
    locked();
    done_with("hypercall page locked");
    save_here("end");
    check_pages();
    done_with("end");
    if (assist) {
        wrmsr(MSR_VP_ASSIST_PAGE, 0);
    }
    hv_synic_stop();
}

SUITE(checkpoint)
{
    if (!has_feature("synic") || !has_feature("stimer") || !has_feature("time")) {
        bail_out("checkpoint needs hv-synic, hv-stimer and hv-time");
    }
    hv_start();
    irq_handler(VEC_MEET, met);
    on_all(processor, NULL);
}
