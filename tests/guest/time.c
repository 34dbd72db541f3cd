/* SPDX-License-Identifier: MIT */
/* Reference time: counter, TSC page, and the frequencies (TLFS 12.3 to 12.5; leaf 0x40000003 for the latter). */

#include "lib/hyperv.h"

#define REF_HZ 10000000ull

struct tsc_page {
    volatile u32 sequence;
    u32 reserved;
    volatile u64 scale;
    volatile u64 offset;
};

static u64 multiply_high(u64 a, u64 b)
{
    u64 al = (u32)a, ah = a >> 32, bl = (u32)b, bh = b >> 32;
    u64 low = al * bl, mid1 = al * bh, mid2 = ah * bl;
    u64 mid = (low >> 32) + (u32)mid1 + (u32)mid2;

    return ah * bh + (mid1 >> 32) + (mid2 >> 32) + (mid >> 32);
}

/* 0: the page does not hold at the moment */
static u64 page_time(void)
{
    const struct tsc_page *page = (const void *)tsc_page;
    u64 scale, offset, tsc;
    u32 sequence;

    do {
        sequence = page->sequence;
        if (!sequence) {
            return 0;
        }
        mfence();
        tsc = rdtsc();
        scale = page->scale;
        offset = page->offset;
        mfence();
    } while (page->sequence != sequence);
    return multiply_high(tsc, scale) + offset;
}

static struct spinlock order;
static u64 latest_page, latest_counter;
static volatile u32 invalid, outside, page_back, counter_back, tsc_msr_outside;

/* On all processors at once. */
static void compare(void *arg)
{
    u32 rounds = *(u32 *)arg;

    for (u32 i = 0; i < rounds; i++) {
        u64 before = ref_time(), page = page_time(), after = ref_time();

        if (!page) {
            invalid++;
        } else if (page < before || page > after) {
            outside++;
        }
        spin_lock(&order);
        page = page_time();
        if (page < latest_page) {
            page_back++;
        }
        latest_page = page;
        spin_unlock(&order);
        spin_lock(&order);
        before = ref_time();
        if (before < latest_counter) {
            counter_back++;
        }
        latest_counter = before;
        spin_unlock(&order);
    }
}

static void tsc_page_checks(void)
{
    const struct tsc_page *page = (const void *)tsc_page;
    u32 rounds = 20000 / cpu_count;

    memset(tsc_page, 0xa5, sizeof(tsc_page));
    wrmsr(MSR_REFERENCE_TSC, (uintptr_t)tsc_page | 1);
    check_eq(rdmsr(MSR_REFERENCE_TSC), (uintptr_t)tsc_page | 1, "REFERENCE_TSC keeps what is written");
    check(page->sequence != 0, "the TSC page is valid");
    check(page->scale != 0, "it has a scale");
    on_all(compare, &rounds);
    check_eq(invalid, 0, "it stays valid");
    check_eq(outside, 0, "page and counter agree, on all processors at once");
    check_eq(page_back, 0, "the page's time does not go back from processor to processor");
    check_eq(counter_back, 0, "nor does the counter");
    wrmsr(MSR_REFERENCE_TSC, 0);
    check_eq(rdmsr(MSR_REFERENCE_TSC), 0, "REFERENCE_TSC can be disabled");
    check_eq(wrmsr_safe(MSR_TIME_REF_COUNT, 0), FAULT_GP, "the counter cannot be written");
}

/*
 * Do ticks between two moments fit to a frequency? Each moment was bracketed by the reference counter: it passed at
 * least "least" and at most "most" of it. One tick of it more or less is rounding.
 */
static void frequency(u64 ticks_least, u64 ticks_most, u64 ref, u64 hz, const char *name)
{
    check(ticks_least * REF_HZ <= (ref + 2) * hz, "%s is not too low", name);
    check(ticks_most * REF_HZ + 2 * hz >= ref * hz, "%s is not too high", name);
}

static void frequencies(void)
{
    u64 tsc_hz, apic_hz, before[2], after[2], ref[2];
    u32 count[2];

    if (!has_feature("frequencies")) {
        return;
    }
    tsc_hz = rdmsr(MSR_TSC_FREQUENCY);
    apic_hz = rdmsr(MSR_APIC_FREQUENCY);
    note("TSC %llu Hz, APIC timer %llu Hz", (unsigned long long)tsc_hz, (unsigned long long)apic_hz);

    for (u32 i = 0; i < 2; i++) {
        before[i] = rdtsc();
        ref[i] = ref_time();
        after[i] = rdtsc();
        if (i == 0) {
            delay(20 * MS);
        }
    }
    frequency(before[1] - after[0], after[1] - before[0], ref[1] - ref[0], tsc_hz, "TSC_FREQUENCY");

    apic_write(APIC_LVT_TIMER, 0x10000);
    apic_write(APIC_TIMER_DIVIDE, 0xb); /* by 1 */
    apic_write(APIC_TIMER_INITIAL, 0xffffffff);
    for (u32 i = 0; i < 2; i++) {
        before[i] = ref_time();
        count[i] = apic_read(APIC_TIMER_CURRENT);
        after[i] = ref_time();
        if (i == 0) {
            delay(20 * MS);
        }
    }
    apic_write(APIC_TIMER_INITIAL, 0);
    check((u64)(count[0] - count[1]) * REF_HZ + 2 * apic_hz >= (before[1] - after[0]) * apic_hz,
          "APIC_FREQUENCY is not too high");
    check((u64)(count[0] - count[1]) * REF_HZ <= (after[1] - before[0] + 2) * apic_hz,
          "APIC_FREQUENCY is not too low");
}

static void counter_goes_on(void)
{
    u64 first = ref_time(), tsc = rdtsc(), value;

    check(wait_for(ref_time() > first), "the reference counter counts");
    if (!rdmsr_safe(0x10, &value)) {
        check(value >= tsc && value <= rdtsc(), "the TSC's MSR 0x10 is what RDTSC reads");
    }
}

SUITE(time)
{
    if (!has_feature("time")) {
        skip("no hv-time", "reference time");
        return;
    }
    counter_goes_on();
    tsc_page_checks();
    frequencies();
}
