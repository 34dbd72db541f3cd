/* SPDX-License-Identifier: MIT */
/*
 * Which MSR is there, which access faults, and the registers that have no suite of their own (TLFS 2.6, 3.13, 7.8).
 *
 * An MSR without its privilege in CPUID leaf 0x40000003 is #GP for read and write; so is each unknown one.
 */

#include "lib/hyperv.h"

#define READ 1u
#define WRITE 2u
#define NO_SWEEP 4u /* accessing it has an effect: it has a check of its own */
#define WRITE_ZERO 8u /* what it reads as must not be written back */

static const struct msr {
    u32 first, last;
    const char *name, *feature; /* NULL: with any flag */
    u32 access;
} table[] = {
    {MSR_GUEST_OS_ID, MSR_GUEST_OS_ID, "GUEST_OS_ID", NULL, READ | WRITE},
    {MSR_HYPERCALL, MSR_HYPERCALL, "HYPERCALL", NULL, READ | WRITE},
    {MSR_VP_INDEX, MSR_VP_INDEX, "VP_INDEX", "vpindex", READ},
    {MSR_RESET, MSR_RESET, "RESET", "reset", READ | WRITE},
    {MSR_VP_RUNTIME, MSR_VP_RUNTIME, "VP_RUNTIME", "runtime", READ},
    {MSR_TIME_REF_COUNT, MSR_TIME_REF_COUNT, "TIME_REF_COUNT", "time", READ},
    {MSR_REFERENCE_TSC, MSR_REFERENCE_TSC, "REFERENCE_TSC", "time", READ | WRITE},
    {MSR_TSC_FREQUENCY, MSR_APIC_FREQUENCY, "TSC_ and APIC_FREQUENCY", "frequencies", READ},
    {MSR_EOI, MSR_EOI, "EOI", "vapic", WRITE},
    {MSR_ICR, MSR_ICR, "ICR", "vapic", READ | WRITE | NO_SWEEP},
    {MSR_TPR, MSR_TPR, "TPR", "vapic", READ | WRITE},
    {MSR_VP_ASSIST_PAGE, MSR_VP_ASSIST_PAGE, "VP_ASSIST_PAGE", "vapic", READ | WRITE},
    {MSR_SCONTROL, MSR_SCONTROL, "SCONTROL", "synic", READ | WRITE},
    {MSR_SVERSION, MSR_SVERSION, "SVERSION", "synic", READ},
    {MSR_SIEFP, MSR_SIMP, "SIEFP and SIMP", "synic", READ | WRITE},
    {MSR_EOM, MSR_EOM, "EOM", "synic", READ | WRITE}, /* "reads always return zeros" */
    {MSR_SINT0, MSR_SINT0 + 15, "SINT0-15", "synic", READ | WRITE},
    {MSR_STIMER0_CONFIG, MSR_STIMER0_CONFIG + 7, "STIMER0-3", "stimer", READ | WRITE},
    {MSR_GUEST_IDLE, MSR_GUEST_IDLE, "GUEST_IDLE", "guest-idle", READ | NO_SWEEP},
    {MSR_CRASH_P0, MSR_CRASH_P0 + 4, "CRASH_P0-4", "crash", READ | WRITE},
    {MSR_CRASH_CTL, MSR_CRASH_CTL, "CRASH_CTL", "crash", READ | WRITE | WRITE_ZERO},
};

#define SWEEP_FIRST 0x40000000u
#define SWEEP_LAST 0x400001ffu

static const struct msr *known(u32 msr)
{
    for (u32 i = 0; i < ARRAY_SIZE(table); i++) {
        if (msr >= table[i].first && msr <= table[i].last) {
            return &table[i];
        }
    }
    return NULL;
}

/* All of the range; one check for each row of the table, one for all that is not in it. */
static void sweep(void)
{
    u32 unknown_bad = 0;

    for (u32 i = 0; i < ARRAY_SIZE(table); i++) {
        const struct msr *row = &table[i];
        bool there = !row->feature || has_feature(row->feature);
        u32 want_read = there && row->access & READ ? FAULT_NONE : FAULT_GP;
        u32 want_write = there && row->access & WRITE ? FAULT_NONE : FAULT_GP;

        for (u32 msr = row->first; msr <= row->last; msr++) {
            u64 value = 0;
            u32 fault;

            if (there && row->access & NO_SWEEP && row->access & WRITE) {
                continue;
            }
            if (!(there && row->access & NO_SWEEP)) {
                fault = rdmsr_safe(msr, &value);
                check_eq(fault, want_read, "RDMSR 0x%x (%s%s) %s", msr, row->name, there ? "" : ", flag off",
                         want_read ? "faults" : "works");
            }
            fault = wrmsr_safe(msr, want_read || row->access & WRITE_ZERO ? 0 : value);
            check_eq(fault, want_write, "WRMSR 0x%x (%s%s) %s", msr, row->name, there ? "" : ", flag off",
                     want_write ? "faults" : "works");
        }
    }
    for (u32 msr = SWEEP_FIRST; msr <= SWEEP_LAST; msr++) {
        u64 value;

        if (known(msr)) {
            continue;
        }
        if (rdmsr_safe(msr, &value) != FAULT_GP || wrmsr_safe(msr, 0) != FAULT_GP) {
            note("unknown MSR 0x%x does not fault", msr);
            unknown_bad++;
        }
    }
    check_eq(unknown_bad, 0, "each unknown MSR up to 0x%x is #GP", SWEEP_LAST);
}

static void os_id(void *arg)
{
    check_eq(rdmsr(MSR_GUEST_OS_ID), *(u64 *)arg, "GUEST_OS_ID on processor %u", this_cpu()->index);
}

static void vp_index(void *arg)
{
    u64 value = rdmsr(MSR_VP_INDEX);

    (void)arg;
    check_eq(value, this_cpu()->index, "VP_INDEX of processor %u", this_cpu()->index);
}

static struct {
    u64 runtime_halted, time_halted, runtime_busy, time_busy;
    bool back;
} runtime;

static volatile bool halt_over;

static void end_halt(u8 vector)
{
    (void)vector;
    halt_over = true;
}

/* On another processor: asleep until the first one wakes it, then busy. */
static void measure_runtime(void *arg)
{
    u64 r, t, last, now;

    (void)arg;
    halt_over = false;
    irq_disable();
    t = ref_time();
    r = rdmsr(MSR_VP_RUNTIME);
    while (!halt_over) {
        irq_wait();
    }
    irq_enable();
    runtime.runtime_halted = rdmsr(MSR_VP_RUNTIME) - r;
    runtime.time_halted = ref_time() - t;

    last = r = rdmsr(MSR_VP_RUNTIME);
    t = ref_time();
    while (ref_time() < t + 20 * MS) {
        now = rdmsr(MSR_VP_RUNTIME);
        runtime.back |= now < last;
        last = now;
    }
    runtime.runtime_busy = rdmsr(MSR_VP_RUNTIME) - r;
    runtime.time_busy = ref_time() - t;
}

#define VEC_END_HALT 0x55

static void vp_runtime(void)
{
    if (!has_feature("runtime")) {
        return;
    }
    check(rdmsr(MSR_VP_RUNTIME) > 0, "VP_RUNTIME counts");
    if (cpu_count == 1 || !has_feature("time")) {
        return;
    }
    irq_handler(VEC_END_HALT, end_halt);
    cpu_start(1, measure_runtime, NULL);
    delay(100 * MS);
    while (cpu_at(1)->fn && !halt_over) {
        apic_ipi(1, 0x4000 | VEC_END_HALT);
        delay(1 * MS);
    }
    cpu_join(1);
    note("VP_RUNTIME: %llu of %llu asleep, %llu of %llu busy", (unsigned long long)runtime.runtime_halted,
         (unsigned long long)runtime.time_halted, (unsigned long long)runtime.runtime_busy,
         (unsigned long long)runtime.time_busy);
    check(runtime.runtime_halted < runtime.time_halted / 2, "VP_RUNTIME does not count a processor in HLT");
    check(runtime.runtime_busy > 0, "VP_RUNTIME counts a busy processor");
    check(runtime.runtime_busy <= runtime.time_busy + 1 * MS, "VP_RUNTIME is not faster than time");
    check(!runtime.back, "VP_RUNTIME does not go back");
}

static volatile u32 idle_step;

/* TLFS 7.8: reading GUEST_IDLE sleeps until an interrupt arrives, even one that is masked. */
static void sleep_in_idle(void *arg)
{
    u64 value;
    u32 vector = *(u32 *)arg;

    irq_disable();
    idle_step = 1;
    rdmsr_safe(MSR_GUEST_IDLE, &value);
    idle_step = apic_bit(APIC_IRR, (u8)vector) ? 3 : 2;
    irq_enable();
}

static void guest_idle(void)
{
    u32 vector = 0x56;
    u64 value;

    if (!has_feature("guest-idle")) {
        return;
    }
    check_eq(wrmsr_safe(MSR_GUEST_IDLE, 0), FAULT_GP, "GUEST_IDLE is read-only");
    irq_disable();
    apic_ipi(this_cpu()->index, 0x4000 | vector);
    check_eq(rdmsr_safe(MSR_GUEST_IDLE, &value), FAULT_NONE, "GUEST_IDLE with an interrupt pending returns at once");
    irq_enable();
    if (!has_feature("time")) {
        return; /* the rest waits with a deadline */
    }
    check(wait_for(irq_count((u8)vector) == 1), "and the interrupt is still there");
    if (cpu_count == 1) {
        return;
    }
    idle_step = 0;
    cpu_start(1, sleep_in_idle, &vector);
    check(wait_for(idle_step == 1), "another processor goes idle");
    delay(20 * MS);
    check_eq(idle_step, 1, "and stays so without an interrupt");
    apic_ipi(1, 0x4000 | vector);
    check(wait_for(idle_step >= 2), "an interrupt wakes it although interrupts are disabled");
    cpu_join(1);
    check_eq(idle_step, 3, "and is still pending then");
    check_eq(cpu_at(1)->irqs[vector], 1, "and arrives when they are enabled");
}

SUITE(msr)
{
    u64 id = rdmsr(MSR_GUEST_OS_ID), value;

    check_eq(id, 0, "GUEST_OS_ID at reset");
    check_eq(rdmsr(MSR_HYPERCALL), 0, "HYPERCALL at reset");
    if (has_feature("time")) {
        check_eq(rdmsr(MSR_REFERENCE_TSC), 0, "REFERENCE_TSC at reset");
    }
    if (has_feature("vapic")) {
        check_eq(rdmsr(MSR_VP_ASSIST_PAGE), 0, "VP_ASSIST_PAGE at reset");
    }
    if (has_feature("crash")) {
        for (u32 i = 0; i < 5; i++) {
            check_eq(rdmsr(MSR_CRASH_P0 + i), 0, "CRASH_P%u at reset", i);
        }
    }
    sweep();
    id = OS_ID | 0x1234;
    wrmsr(MSR_GUEST_OS_ID, id);
    on_all(os_id, &id);
    id = 0;
    wrmsr(MSR_GUEST_OS_ID, id);
    on_all(os_id, &id);
    if (has_feature("vpindex")) {
        on_all(vp_index, NULL);
    }
    if (has_feature("reset")) {
        check(!rdmsr_safe(MSR_RESET, &value) && value == 0, "RESET reads as 0");
    }
    if (has_feature("synic")) {
        check(!rdmsr_safe(MSR_EOM, &value) && value == 0, "EOM reads as 0");
        check_eq(rdmsr(MSR_SVERSION), 1, "SVERSION");
    }
    vp_runtime();
    guest_idle();
}
