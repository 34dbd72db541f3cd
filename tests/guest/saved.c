/* SPDX-License-Identifier: MIT */
/*
 * saved: a state that is about to matter, a checkpoint, and the check that it is still there. At each checkpoint the
 * harness may save the machine, load it into another process, and go on; the machine stands still from the
 * checkpoint on, so the state is the one that the comment says. Without the word checkpoints it is a plain test.
 *
 * Timers that have to run over a checkpoint are far enough in the future (AHEAD) that they have not expired when the
 * machine stops; if it was that slow, the step is done again.
 */

#include "lib/hyperv.h"

#define AHEAD (200 * MS)
#define VEC_DIRECT 0x75
#define VEC_OTHER 0x51
#define PERIOD 70001ull
#define ME (this_cpu()->index)

static void drain(void)
{
    struct timer_log *log = my_log();

    for (u32 i = 0; i < 4; i++) {
        wrmsr(STIMER_CONFIG(i), 0);
        wrmsr(STIMER_COUNT(i), 0);
    }
    delay(MS / 2);
    for (u32 i = 0; i < 16; i++) {
        my_slot(i)->type = 0;
    }
    memset(log, 0, sizeof(*log));
}

/* --- registers without an effect yet --- */

static u64 registers[MAX_CPUS][64];

static u32 collect(u64 *to)
{
    u32 n = 0;

    to[n++] = rdmsr(MSR_GUEST_OS_ID);
    to[n++] = rdmsr(MSR_HYPERCALL);
    to[n++] = rdmsr(MSR_VP_INDEX);
    to[n++] = rdmsr(MSR_REFERENCE_TSC);
    to[n++] = has_feature("vapic") ? rdmsr(MSR_VP_ASSIST_PAGE) : 0;
    to[n++] = has_feature("vapic") ? rdmsr(MSR_TPR) : 0;
    to[n++] = rdmsr(MSR_SCONTROL);
    to[n++] = rdmsr(MSR_SIMP);
    to[n++] = rdmsr(MSR_SIEFP);
    for (u32 i = 0; i < 16; i++) {
        to[n++] = rdmsr(SINT(i));
    }
    for (u32 i = 0; i < 8; i++) {
        to[n++] = rdmsr(MSR_STIMER0_CONFIG + i);
    }
    for (u32 i = 0; i < 5; i++) {
        to[n++] = has_feature("crash") ? rdmsr(MSR_CRASH_P0 + i) : 0;
    }
    return n;
}

static void set_registers(void *arg)
{
    (void)arg;
    hv_synic_start();
    for (u32 i = 1; i < 16; i++) {
        wrmsr(SINT(i), SINT_MASKED | (i & 1 ? SINT_AUTO_EOI : SINT_POLLING) | (0x40 + 8 * i + ME));
    }
    for (u32 i = 0; i < 4; i++) {
        wrmsr(STIMER_COUNT(i), 1000 * ME + i + 1);
        wrmsr(STIMER_CONFIG(i), STIMER_SINT(i + 1) | (i & 1 ? STIMER_PERIODIC : STIMER_LAZY));
    }
    if (has_feature("vapic")) {
        wrmsr(MSR_VP_ASSIST_PAGE, (uintptr_t)my_pages()->assist | 1);
        wrmsr(MSR_TPR, 0x20 + ME);
    }
    my_pages()->simp[4000] = (u8)(0xa0 + ME);
    my_pages()->siefp[77] = (u8)(0xb0 + ME);
    collect(registers[ME]);
}

static volatile u32 differ;

static void compare_registers(void *arg)
{
    u64 now[64];
    u32 n = collect(now);

    (void)arg;
    for (u32 i = 0; i < n; i++) {
        if (now[i] != registers[ME][i]) {
            note("processor %u: register %u is 0x%llx, was 0x%llx", ME, i, (unsigned long long)now[i],
                 (unsigned long long)registers[ME][i]);
            differ++;
        }
    }
    if (my_pages()->simp[4000] != 0xa0 + ME || my_pages()->siefp[77] != 0xb0 + ME) {
        note("processor %u: the SynIC's pages have changed", ME);
        differ++;
    }
    if (has_feature("vapic")) {
        wrmsr(MSR_TPR, 0);
        wrmsr(MSR_VP_ASSIST_PAGE, 0);
    }
    hv_synic_stop();
}

static void registers_step(void)
{
    u64 before, page_scale;

    wrmsr(MSR_REFERENCE_TSC, (uintptr_t)tsc_page | 1);
    if (has_feature("crash")) {
        for (u32 i = 0; i < 5; i++) {
            wrmsr(MSR_CRASH_P0 + i, 0x77770000 + i);
        }
    }
    on_all(set_registers, NULL);
    page_scale = ((volatile u64 *)(void *)tsc_page)[1];
    before = ref_time();
    checkpoint("registers");
    check(ref_time() >= before, "reference time does not go back");
    check_eq(((volatile u64 *)(void *)tsc_page)[1], page_scale, "the TSC page is the same");
    differ = 0;
    on_all(compare_registers, NULL);
    check_eq(differ, 0, "all registers of all processors, and the SynIC's pages");
    check_eq(HV_STATUS(hypercall(0x7777, 0, 0)), HV_INVALID_HYPERCALL_CODE, "the hypercall page works");
}

/* Counter and TSC page go on where they were: the harness lets two seconds pass while the machine is stopped. */
static void clock_step(void)
{
    u64 before, after;
    bool agrees = true;

    before = ref_time();
    checkpoint("clock");
    after = ref_time();
    if (option("checkpoints")) {
        check(after - before < 2000 * MS, "reference time stands still while the machine is stopped: %llu",
              (unsigned long long)(after - before));
    }
    for (u32 i = 0; i < 1000; i++) {
        volatile u64 *page = (volatile u64 *)(void *)tsc_page;
        u64 t1 = ref_time(), tsc = rdtsc(), scale = page[1], t3 = ref_time();
        u64 al = (u32)tsc, ah = tsc >> 32, bl = (u32)scale, bh = scale >> 32;
        u64 mid1 = al * bh, mid2 = ah * bl, mid = (al * bl >> 32) + (u32)mid1 + (u32)mid2;
        u64 t2 = ah * bh + (mid1 >> 32) + (mid2 >> 32) + (mid >> 32) + page[2];

        agrees &= (u32)page[0] == 0 || (t1 <= t2 && t2 <= t3);
    }
    check(agrees, "TSC page and counter still agree");
    wrmsr(MSR_REFERENCE_TSC, 0);
}

/* --- timers that run over the checkpoint, on all processors --- */

static u64 one_shot_at[MAX_CPUS], periodic_from[MAX_CPUS], periodic_to[MAX_CPUS];
static volatile u32 timer_bad;

static void arm(void *arg)
{
    u64 expiration = *(u64 *)arg + 1234 * ME;

    hv_synic_log();
    memset((void *)(uintptr_t)this_cpu()->irqs, 0, sizeof(this_cpu()->irqs));
    one_shot_at[ME] = expiration;
    stimer_shoot(0, 3, expiration);
    wrmsr(STIMER_COUNT(1), PERIOD);
    periodic_from[ME] = ref_time();
    wrmsr(STIMER_CONFIG(1), STIMER_SINT(4) | STIMER_PERIODIC | STIMER_ENABLE);
    periodic_to[ME] = ref_time();
    if (has_feature("stimer-direct")) {
        wrmsr(STIMER_CONFIG(2), STIMER_DIRECT | STIMER_VECTOR(VEC_DIRECT) | STIMER_AUTO_ENABLE);
        wrmsr(STIMER_COUNT(2), expiration);
    }
}

static void timers_arrive(void *arg)
{
    struct timer_log *log = my_log();
    bool use_direct = has_feature("stimer-direct");
    u64 first = 0;
    u32 shots = 0, before;

    (void)arg;
    if (!wait_for(!(rdmsr(STIMER_CONFIG(0)) & STIMER_ENABLE) && (!use_direct || irq_count(VEC_DIRECT)))) {
        note("processor %u: a timer is lost", ME);
        timer_bad++;
    }
    if (use_direct && (irq_count(VEC_DIRECT) != 1 || ref_time() < one_shot_at[ME])) {
        note("processor %u: the direct timer fired %u times", ME, irq_count(VEC_DIRECT));
        timer_bad++;
    }
    before = log->count;
    if (!wait_for(log->count >= before + 3)) {
        note("processor %u: the periodic timer is lost", ME);
        timer_bad++;
    }
    wrmsr(STIMER_CONFIG(1), 0);
    for (u32 i = 0; i < log->count && i < 64; i++) {
        if (log->entry[i].index == 0) {
            shots++;
            if (log->entry[i].expiration != one_shot_at[ME]) {
                note("processor %u: expired at %llu, not %llu", ME, (unsigned long long)log->entry[i].expiration,
                     (unsigned long long)one_shot_at[ME]);
                timer_bad++;
            }
        } else {
            u64 at = log->entry[i].expiration;

            if (!first) {
                first = at;
            }
            for (at -= first; at >= PERIOD; at -= PERIOD) {
            }
            if (at) {
                note("processor %u: the periodic timer lost its phase by %llu", ME, (unsigned long long)at);
                timer_bad++;
            }
        }
    }
    if (first < periodic_from[ME] + PERIOD || first > periodic_to[ME] + PERIOD) {
        note("processor %u: the first period ended at %llu, of %llu to %llu", ME, (unsigned long long)first,
             (unsigned long long)(periodic_from[ME] + PERIOD), (unsigned long long)(periodic_to[ME] + PERIOD));
        timer_bad++;
    }
    if (shots != 1 || log->early) {
        note("processor %u: %u one-shot messages, %u early", ME, shots, log->early);
        timer_bad++;
    }
    drain();
}

static void timers_step(void)
{
    u64 expiration;
    u32 tries = 0;

    do {
        on_all((void (*)(void *))drain, NULL);
        expiration = ref_time() + AHEAD;
        on_all(arm, &expiration);
        checkpoint("timers armed");
    } while (ref_time() >= expiration && ++tries < 3);
    check(tries < 3, "the timers have not expired at the checkpoint");
    timer_bad = 0;
    on_all(timers_arrive, NULL);
    check_eq(timer_bad, 0, "on all processors: one-shot, direct, periodic, each at its exact time");
}

/* --- messages --- */

static void message_step(void)
{
    volatile struct hv_message *slot = my_slot(5);
    u64 first = ref_time() - 5, second = first - 2;

    wrmsr(SINT(5), SINT_MASKED | VEC_SINT(5));
    drain();
    stimer_shoot(0, 5, first);
    check(wait_for(slot->type == MSG_TIMER_EXPIRED), "a message in a slot");
    checkpoint("message in its slot");
    check(slot->type == MSG_TIMER_EXPIRED && slot->timer.expiration == first && !slot->flags, "it is still there");

    stimer_shoot(1, 5, second);
    check(wait_for(slot->flags & MSG_FLAG_PENDING), "a second one waits");
    checkpoint("timer expired with the slot occupied");
    check(slot->flags & MSG_FLAG_PENDING && slot->timer.expiration == first, "the first is still there, and the flag");
    delay(MS);
    check_eq(slot->timer.expiration, first, "nothing else comes");
    slot->type = 0;
    mfence();
    checkpoint("slot free, EOM to be written");
    wrmsr(MSR_EOM, 0);
    check(wait_for(slot->type == MSG_TIMER_EXPIRED), "EOM brings the second");
    check_eq(slot->timer.expiration, second, "with its expiration time");
    check(wait_for(!(rdmsr(STIMER_CONFIG(1)) & STIMER_ENABLE)), "the timer is disabled then");
    drain();
}

static void vmbus_step(void)
{
    volatile struct hv_message *slot = my_slot(VMBUS_SINT);

    if (!option("vmbus")) {
        return;
    }
    wrmsr(SINT(VMBUS_SINT), SINT_MASKED | VEC_SINT(VMBUS_SINT));
    slot->flags = 0;
    slot->type = 1;
    check_eq(vmbus_contact(ME), HV_SUCCESS, "a message to VMBus");
    check(wait_for(slot->flags & MSG_FLAG_PENDING), "its answer waits for the slot");
    checkpoint("VMBus's answer waits");
    slot->type = 0;
    mfence();
    wrmsr(MSR_EOM, 0);
    check(wait_for(slot->type == 1 && slot->word[0] == VMBUS_VERSION_RESPONSE), "the answer comes");
    drain();
}

/* --- interrupts --- */

static void in_service(u8 vector)
{
    (void)vector;
    checkpoint("SINT in service");
}

static void in_service_step(void)
{
    drain();
    irq_reset();
    irq_handler(VEC_SINT(6), in_service);
    wrmsr(SINT(6), VEC_SINT(6));
    stimer_shoot(0, 6, 1);
    check(wait_for(irq_count(VEC_SINT(6)) == 1), "an interrupt that was in service ends");
    check(!apic_bit(APIC_ISR, VEC_SINT(6)), "by its EOI");
    my_slot(6)->type = 0;
    irq_handler(VEC_SINT(6), NULL);
    stimer_shoot(0, 6, 1);
    check(wait_for(irq_count(VEC_SINT(6)) == 2), "the next one arrives");
    drain();
}

static void requested_step(void)
{
    irq_reset();
    irq_disable();
    stimer_shoot(0, 6, 1);
    check(wait_for(apic_bit(APIC_IRR, VEC_SINT(6))), "an interrupt is requested, with interrupts disabled");
    checkpoint("SINT requested");
    check(apic_bit(APIC_IRR, VEC_SINT(6)), "it still is");
    irq_enable();
    check(wait_for(irq_count(VEC_SINT(6)) == 1), "and arrives, once");
    delay(MS);
    check_eq(irq_count(VEC_SINT(6)), 1, "and not again");
    drain();
}

static volatile u32 *assist(void)
{
    return (volatile u32 *)(void *)my_pages()->assist;
}

static bool take_bit(void)
{
    bool was;

    __asm__ volatile("lock; btrl $0, %0; setc %1" : "+m"(*assist()), "=q"(was)::"memory");
    return was;
}

static volatile bool lazy_before, lazy_after;
static const char *lazy_point;

static void lazy_handler(u8 vector)
{
    (void)vector;
    if (lazy_point && !lazy_after) {
        lazy_before = *assist() & 1;
        checkpoint(lazy_point);
        lazy_point = NULL;
    }
    if (!take_bit()) {
        wrmsr(MSR_EOI, 0);
    }
}

static void lazy_after_handler(u8 vector)
{
    (void)vector;
    if (take_bit()) {
        lazy_before = true;
        if (lazy_after) {
            /* The guest has done its EOI; the host does not know it yet. */
            lazy_after = false;
            checkpoint("lazy EOI done, the host not told");
        }
    } else {
        wrmsr(MSR_EOI, 0);
    }
}

static void lazy_step(void)
{
    if (!has_feature("vapic")) {
        return;
    }
    irq_reset();
    *assist() = 0;
    wrmsr(MSR_VP_ASSIST_PAGE, (uintptr_t)my_pages()->assist | 1);
    irq_no_eoi(VEC_OTHER, true);
    lazy_before = false;
    lazy_after = false;
    lazy_point = "lazy EOI outstanding";
    irq_handler(VEC_OTHER, lazy_handler);
    for (u32 i = 1; i <= 3; i++) {
        apic_ipi(ME, 0x4000 | VEC_OTHER);
        check(wait_for(irq_count(VEC_OTHER) == i), "with a lazy EOI outstanding: interrupt %u", i);
    }
    check(lazy_before, "the EOI could be omitted");
    lazy_before = false;
    lazy_after = true;
    irq_handler(VEC_OTHER, lazy_after_handler);
    for (u32 i = 4; i <= 6; i++) {
        apic_ipi(ME, 0x4000 | VEC_OTHER);
        check(wait_for(irq_count(VEC_OTHER) == i), "with a lazy EOI done: interrupt %u", i);
    }
    check(lazy_before, "the EOI was omitted");
    check(!apic_bit(APIC_ISR, VEC_OTHER), "nothing is in service");
    wrmsr(MSR_VP_ASSIST_PAGE, 0);
    irq_reset();
}

/* --- processors that sleep --- */

static u64 wake_at[MAX_CPUS];
static volatile u32 woken;

static void sleep_on_timer(void *arg)
{
    struct timer_log *log = my_log();

    hv_synic_log();
    irq_disable();
    wake_at[ME] = *(u64 *)arg + 500 * ME;
    stimer_shoot(0, 3, wake_at[ME]);
    while (!log->count) {
        irq_wait();
    }
    irq_enable();
    if (log->entry[0].expiration == wake_at[ME] && log->count == 1) {
        __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
    }
    drain();
}

static void asleep_step(void)
{
    u64 expiration;
    u32 tries = 0;
    bool late;

    if (cpu_count == 1) {
        return;
    }
    do {
        woken = 0;
        expiration = ref_time() + AHEAD;
        for (u32 i = 1; i < cpu_count; i++) {
            cpu_start(i, sleep_on_timer, &expiration);
        }
        delay(5 * MS);
        checkpoint("the others asleep, their timers armed");
        late = ref_time() >= expiration;
        for (u32 i = 1; i < cpu_count; i++) {
            cpu_join(i);
        }
    } while (late && ++tries < 3);
    check(tries < 3, "the timers have not expired at the checkpoint");
    check_eq(woken, cpu_count - 1, "each is woken by its timer, at its exact time");
}

SUITE(saved)
{
    if (!has_feature("stimer") || !has_feature("time")) {
        skip("needs hv-stimer and hv-time", "saved state");
        return;
    }
    hv_start();
    registers_step();
    wrmsr(MSR_REFERENCE_TSC, (uintptr_t)tsc_page | 1);
    clock_step();
    for (u32 i = 0; i < cpu_count; i++) {
        on_cpu(i, (void (*)(void *))hv_synic_log, NULL);
    }
    timers_step();
    hv_synic_log();
    message_step();
    vmbus_step();
    in_service_step();
    hv_synic_log();
    requested_step();
    lazy_step();
    hv_synic_log();
    asleep_step();
    for (u32 i = 0; i < cpu_count; i++) {
        on_cpu(i, (void (*)(void *))hv_synic_stop, NULL);
    }
    hv_stop();
}
