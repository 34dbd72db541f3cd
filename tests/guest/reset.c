/* SPDX-License-Identifier: MIT */
/*
 * HV_X64_MSR_RESET, and what a reset leaves: nothing (TLFS 2.6, 3.13, 11, 12). The program sets all there is on all
 * processors, locks the hypercall MSR, leaves timers running and a message of VMBus waiting, resets, and looks in
 * its second life. Checks are numbered on through both.
 */

#include "lib/hyperv.h"

#define MAGIC 0x7e5e7u
#define VEC_DIRECT 0x75

extern u32 checks;

static void set_all(void *arg)
{
    (void)arg;
    hv_synic_start();
    for (u32 i = 1; i < 16; i++) {
        wrmsr(SINT(i), VEC_SINT(i));
    }
    if (has_feature("vapic")) {
        wrmsr(MSR_VP_ASSIST_PAGE, (uintptr_t)my_pages()->assist | 1);
    }
    if (has_feature("stimer")) {
        wrmsr(STIMER_COUNT(0), 50 * MS);
        wrmsr(STIMER_CONFIG(0), STIMER_SINT(3) | STIMER_PERIODIC | STIMER_ENABLE);
        stimer_shoot(1, 4, ref_time() + 500 * MS);
        if (has_feature("stimer-direct")) {
            wrmsr(STIMER_COUNT(2), ref_time() + 500 * MS);
            wrmsr(STIMER_CONFIG(2), STIMER_DIRECT | STIMER_VECTOR(VEC_DIRECT) | STIMER_ENABLE);
        }
    }
}

static void first_life(void)
{
    u64 locked = (uintptr_t)hypercall_page | 3;

    hv_start();
    if (has_feature("time")) {
        wrmsr(MSR_REFERENCE_TSC, (uintptr_t)tsc_page | 1);
    }
    if (has_feature("crash")) {
        wrmsr(MSR_CRASH_P0, 5);
    }
    wrmsr(MSR_HYPERCALL, locked);
    check_eq(rdmsr(MSR_HYPERCALL), locked, "the hypercall MSR can be locked");
    wrmsr(MSR_HYPERCALL, (uintptr_t)tsc_page | 1);
    check_eq(rdmsr(MSR_HYPERCALL), locked, "then the page cannot be moved");
    wrmsr(MSR_HYPERCALL, 0);
    check_eq(rdmsr(MSR_HYPERCALL), locked, "nor disabled, nor unlocked");
    check_eq(HV_STATUS(hypercall(0x7777, 0, 0)), HV_INVALID_HYPERCALL_CODE, "and it works");
    if (has_feature("synic")) {
        on_all(set_all, NULL);
        if (option("vmbus")) {
            my_slot(VMBUS_SINT)->type = 1;
            check_eq(vmbus_contact(0), HV_SUCCESS, "a message of VMBus");
            check(wait_for(my_slot(VMBUS_SINT)->flags & MSG_FLAG_PENDING), "waits for its slot");
        }
    }
    SURVIVES_RESET[0] = MAGIC;
    SURVIVES_RESET[1] = checks;
    SURVIVES_RESET[2] = checks_failed;
    print("reset");
    wrmsr(MSR_RESET, 1);
    for (;;) {
        pause();
    }
}

static void all_clear(void *arg)
{
    u32 index = this_cpu()->index;
    u64 set = 0;

    (void)arg;
    if (has_feature("synic")) {
        for (u32 i = 0; i < 16; i++) {
            set |= rdmsr(SINT(i)) ^ SINT_MASKED;
        }
        check_eq(set, 0, "processor %u: SINTs are masked", index);
        check_eq(rdmsr(MSR_SCONTROL) | rdmsr(MSR_SIMP) | rdmsr(MSR_SIEFP), 0, "processor %u: SynIC is off", index);
    }
    if (has_feature("stimer")) {
        for (u32 i = 0; i < 8; i++) {
            set |= rdmsr(MSR_STIMER0_CONFIG + i);
        }
        check_eq(set, 0, "processor %u: no timer", index);
    }
    if (has_feature("vapic")) {
        check_eq(rdmsr(MSR_VP_ASSIST_PAGE), 0, "processor %u: no VP assist page", index);
    }
    if (has_feature("vpindex")) {
        check_eq(rdmsr(MSR_VP_INDEX), index, "processor %u: VP index", index);
    }
}

static void second_life(void)
{
    u32 late = 0;

    SURVIVES_RESET[0] = 0;
    checks = SURVIVES_RESET[1];
    checks_failed = SURVIVES_RESET[2];
    check_eq(rdmsr(MSR_GUEST_OS_ID), 0, "after the reset: no guest OS id");
    check_eq(rdmsr(MSR_HYPERCALL), 0, "no hypercall page, and it is not locked");
    if (has_feature("time")) {
        check_eq(rdmsr(MSR_REFERENCE_TSC), 0, "no TSC page");
    }
    if (has_feature("crash")) {
        check_eq(rdmsr(MSR_CRASH_P0), 0, "no crash parameter");
    }
    on_all(all_clear, NULL);
    /* All works anew, and nothing of the first life comes in between. */
    hv_start();
    check_eq(HV_STATUS(hypercall(0x7777, 0, 0)), HV_INVALID_HYPERCALL_CODE, "hypercalls work");
    if (has_feature("stimer")) {
        u64 expiration;

        hv_synic_log();
        delay(600 * MS);
        for (u32 v = 0x60; v < 0x80; v++) {
            late += irq_count((u8)v);
        }
        check_eq(late, 0, "no timer of the first life");
        check_eq(my_log()->count + my_log()->others, 0, "no message of the first life");
        expiration = ref_time() + 1 * MS;
        stimer_shoot(1, 4, expiration);
        check(wait_for(my_log()->count == 1), "a timer works");
        check_eq(my_log()->entry[0].expiration, expiration, "with its time");
        if (option("vmbus")) {
            check_eq(vmbus_contact(0), HV_SUCCESS, "VMBus works");
            check(wait_for(my_log()->others == 1), "and answers");
        }
    }
}

SUITE(reset)
{
    if (!has_feature("reset")) {
        skip("no hv-reset", "reset");
        return;
    }
    if (SURVIVES_RESET[0] == MAGIC) {
        second_life();
    } else {
        first_life();
    }
}
