/* SPDX-License-Identifier: MIT */
/*
 * Synthetic timers (TLFS 12.6): one-shot and periodic, lazy, auto-enable, direct mode; that none is early, that the
 * expiration time in a message is exact, and that a periodic timer keeps its phase.
 */

#include "lib/hyperv.h"

#define VEC_DIRECT 0x75
#define ME (this_cpu()->index)

static void stop_all(void)
{
    for (u32 i = 0; i < 4; i++) {
        wrmsr(STIMER_CONFIG(i), 0);
        wrmsr(STIMER_COUNT(i), 0);
    }
    delay(MS / 5);
    memset(my_log(), 0, sizeof(struct timer_log));
}

static void at_reset(void *arg)
{
    u64 all = 0;

    (void)arg;
    for (u32 i = 0; i < 8; i++) {
        all |= rdmsr(MSR_STIMER0_CONFIG + i);
    }
    check_eq(all, 0, "processor %u: timers at reset", ME);
}

static void one_shot(void)
{
    struct timer_log *log = my_log();

    for (u32 timer = 0; timer < 4; timer++) {
        u64 expiration = ref_time() + 3 * MS;
        u64 config = STIMER_SINT(3 + timer) | STIMER_ENABLE;
        u32 before = log->count;

        stimer_shoot(timer, 3 + timer, expiration);
        check_eq(rdmsr(STIMER_COUNT(timer)), expiration, "timer %u: COUNT reads back", timer);
        if (ref_time() < expiration) {
            u64 got = rdmsr(STIMER_CONFIG(timer));

            check(got == config || ref_time() >= expiration, "timer %u: CONFIG reads back", timer);
        }
        check(wait_for(log->count == before + 1), "timer %u expires", timer);
        check_eq(log->entry[before % 64].expiration, expiration, "at the time it was given");
        check_eq(log->entry[before % 64].index, timer, "with its index");
        check_eq(log->entry[before % 64].sint, 3 + timer, "at its SINT");
        check_eq(rdmsr(STIMER_CONFIG(timer)), config & ~STIMER_ENABLE, "and is disabled then");
        check_eq(rdmsr(STIMER_COUNT(timer)), expiration, "COUNT is kept");
    }
    delay(1 * MS);
    check_eq(log->count, 4, "none expires twice");

    stop_all();
    stimer_shoot(0, 3, 1);
    check(wait_for(log->count == 1), "a time in the past expires at once");
    check_eq(log->entry[0].expiration, 1, "with that expiration time");
    stimer_shoot(0, 3, ~0ull);
    delay(1 * MS);
    check(log->count == 1 && rdmsr(STIMER_CONFIG(0)) & STIMER_ENABLE, "the last of all times does not expire");
    wrmsr(STIMER_CONFIG(0), 0);
}

static void cancelled(void)
{
    struct timer_log *log = my_log();

    u64 expiration;

    /* Both are disabled in time, even if this processor does not run for a while. */
    do {
        stop_all();
        expiration = ref_time() + 40 * MS;
        stimer_shoot(0, 3, expiration);
        wrmsr(STIMER_CONFIG(0), STIMER_SINT(3));
        stimer_shoot(1, 3, expiration);
        wrmsr(STIMER_COUNT(1), 0);
    } while (ref_time() >= expiration);
    check_eq(rdmsr(STIMER_CONFIG(1)) & STIMER_ENABLE, 0, "COUNT of 0 disables a timer");
    delay(expiration - ref_time() + 1 * MS);
    check_eq(log->count, 0, "a timer that is disabled, by CONFIG or by COUNT, does not expire");
    wrmsr(STIMER_CONFIG(2), STIMER_ENABLE);
    check_eq(rdmsr(STIMER_CONFIG(2)) & STIMER_ENABLE, 0, "a timer cannot be enabled with SINT 0");
    wrmsr(STIMER_CONFIG(2), 0);
    wrmsr(STIMER_CONFIG(3), STIMER_SINT(3) | STIMER_ENABLE);
    delay(1 * MS);
    check_eq(log->count, 0, "nor does one without a COUNT expire");
    wrmsr(STIMER_CONFIG(3), 0);
}

static void auto_enable(void)
{
    struct timer_log *log = my_log();
    u64 expiration;

    stop_all();
    wrmsr(STIMER_CONFIG(0), STIMER_SINT(3));
    wrmsr(STIMER_COUNT(0), ref_time() + 1);
    delay(1 * MS);
    check_eq(log->count, 0, "without AutoEnable, COUNT starts nothing");
    wrmsr(STIMER_CONFIG(1), STIMER_SINT(3) | STIMER_AUTO_ENABLE);
    delay(1 * MS);
    check_eq(log->count, 0, "nor does CONFIG with AutoEnable alone");
    for (u32 i = 0; i < 3; i++) {
        expiration = ref_time() + MS / 10;
        wrmsr(STIMER_COUNT(1), expiration);
        check(wait_for(log->count == i + 1), "with AutoEnable, COUNT starts a one-shot timer (%u)", i);
        check_eq(log->entry[i].expiration, expiration, "for that time");
        check_eq(rdmsr(STIMER_CONFIG(1)), STIMER_SINT(3) | STIMER_AUTO_ENABLE, "which is disabled then");
    }
    wrmsr(STIMER_COUNT(1), 0);
    check_eq(rdmsr(STIMER_CONFIG(1)) & STIMER_ENABLE, 0, "a COUNT of 0 does not");
    wrmsr(STIMER_CONFIG(1), 0);
}

static void periodic(u64 more, const char *name)
{
    struct timer_log *log = my_log();
    u64 period = 12345, begin, end, first;
    u32 off = 0, seen;

    stop_all();
    wrmsr(STIMER_COUNT(0), period);
    begin = ref_time();
    wrmsr(STIMER_CONFIG(0), STIMER_SINT(3) | STIMER_PERIODIC | more | STIMER_ENABLE);
    end = ref_time();
    check(wait_for(log->count >= 12), "%s: expires again and again", name);
    first = log->entry[0].expiration;
    check(first >= begin + period && first <= end + period, "%s: the first period begins when it is enabled", name);
    for (u32 i = 1; i < 12; i++) {
        u64 since = log->entry[i].expiration - first;

        while (since >= period) {
            since -= period;
        }
        off += since != 0 || log->entry[i].expiration <= log->entry[i - 1].expiration;
    }
    check_eq(off, 0, "%s: each time is a whole number of periods later", name);
    check_eq(rdmsr(STIMER_CONFIG(0)), STIMER_SINT(3) | STIMER_PERIODIC | more | STIMER_ENABLE, "%s: stays enabled",
             name);

    /* Nobody empties the slot for a while. */
    irq_handler(VEC_SINT(3), NULL);
    wrmsr(SINT(3), SINT_MASKED | VEC_SINT(3));
    delay(10 * period);
    seen = log->count;
    irq_handler(VEC_SINT(3), log_messages);
    wrmsr(SINT(3), VEC_SINT(3));
    my_slot(3)->type = 0;
    mfence();
    wrmsr(MSR_EOM, 0);
    check(wait_for(log->count >= seen + 5), "%s: goes on after the slot was occupied", name);
    off = 0;
    for (u32 i = seen; i < seen + 5; i++) {
        u64 since = log->entry[i % 64].expiration - first;

        while (since >= period) {
            since -= period;
        }
        off += since != 0;
    }
    check_eq(off, 0, "%s: in its phase", name);
    wrmsr(STIMER_CONFIG(0), 0);
    delay(MS / 5);
    my_slot(3)->type = 0;
    wrmsr(MSR_EOM, 0);
    seen = log->count;
    delay(3 * period);
    check_eq(log->count, seen, "%s: ends when it is disabled", name);
}

static void fast_periodic(void)
{
    struct timer_log *log = my_log();

    stop_all();
    wrmsr(STIMER_COUNT(0), 1);
    wrmsr(STIMER_CONFIG(0), STIMER_SINT(3) | STIMER_PERIODIC | STIMER_ENABLE);
    check(wait_for(log->count >= 20), "a period of 100 ns: expires, and the processor still runs");
    wrmsr(STIMER_CONFIG(0), 0);
    stop_all();
    wrmsr(STIMER_COUNT(0), ~0ull);
    wrmsr(STIMER_CONFIG(0), STIMER_SINT(3) | STIMER_PERIODIC | STIMER_ENABLE);
    delay(1 * MS);
    check_eq(log->count, 0, "the longest of all periods does not end");
    wrmsr(STIMER_CONFIG(0), 0);
}

static void direct(void)
{
    u64 config = STIMER_DIRECT | STIMER_VECTOR(VEC_DIRECT);
    u64 expiration;
    u32 before;

    stop_all();
    if (!has_feature("stimer-direct")) {
        check_eq(wrmsr_safe(STIMER_CONFIG(0), config), FAULT_GP, "direct mode without its CPUID bit is #GP");
        return;
    }
    expiration = ref_time() + 1 * MS;
    wrmsr(STIMER_COUNT(0), expiration);
    wrmsr(STIMER_CONFIG(0), config | STIMER_ENABLE);
    check(wait_for(irq_count(VEC_DIRECT) == 1), "direct mode: an interrupt");
    check(ref_time() >= expiration, "not early");
    check_eq(rdmsr(STIMER_CONFIG(0)), config, "and the timer is disabled then");
    wrmsr(STIMER_CONFIG(1), config | STIMER_AUTO_ENABLE);
    wrmsr(STIMER_COUNT(1), ref_time() + MS / 10);
    check(wait_for(irq_count(VEC_DIRECT) == 2), "direct mode with AutoEnable, and no SINT");
    wrmsr(STIMER_COUNT(2), 5000);
    wrmsr(STIMER_CONFIG(2), config | STIMER_PERIODIC | STIMER_ENABLE);
    check(wait_for(irq_count(VEC_DIRECT) >= 12), "direct mode, periodic");
    wrmsr(STIMER_CONFIG(2), 0);
    delay(MS / 5);
    before = irq_count(VEC_DIRECT);
    delay(3 * MS);
    check_eq(irq_count(VEC_DIRECT), before, "ends when it is disabled");
    check_eq(my_log()->count + my_log()->others, 0, "no message in direct mode");
}

static void reserved(void)
{
    static const u64 bits[] = {1ull << 13, 1ull << 15, 1ull << 20, 1ull << 63};

    for (u32 i = 0; i < ARRAY_SIZE(bits); i++) {
        u32 before;

        stop_all();
        before = my_log()->count;
        wrmsr(STIMER_COUNT(0), 1);
        /* "should be set to zero": a fault, or no effect. */
        check(wrmsr_safe(STIMER_CONFIG(0), bits[i] | STIMER_SINT(3) | STIMER_ENABLE) == FAULT_GP ||
                  wait_for(my_log()->count == before + 1),
              "a reserved bit of CONFIG (0x%llx) is no other timer", (unsigned long long)bits[i]);
    }
}

static void processor(void *arg)
{
    (void)arg;
    hv_synic_log();
    one_shot();
    cancelled();
    auto_enable();
    periodic(0, "periodic");
    periodic(STIMER_LAZY, "periodic, lazy");
    fast_periodic();
    direct();
    reserved();
    check_eq(my_log()->early, 0, "no timer is early");
    hv_synic_stop();
}

SUITE(stimer)
{
    if (!has_feature("stimer")) {
        skip("no hv-stimer", "synthetic timers");
        return;
    }
    for (u32 i = 0; i < cpu_count; i++) {
        on_cpu(i, at_reset, NULL);
    }
    on_cpu(0, processor, NULL);
    if (cpu_count > 1) {
        on_cpu(cpu_count - 1, processor, NULL);
    }
}
