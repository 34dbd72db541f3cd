/* SPDX-License-Identifier: MIT */
/*
 * The crash MSRs (TLFS 2.6.1 of the guest crash enlightenment): parameters, capabilities, and the notification, which
 * tests/e2e/test_guest_events.py sees as QMP's GUEST_PANICKED with the same parameters. The harness has QEMU pause
 * at a panic, so that the program can go on afterwards.
 */

#include "lib/hyperv.h"

#define CRASH_NOTIFY (1ull << 63)

static void read_back(void *arg)
{
    u32 bad = 0;

    (void)arg;
    for (u32 i = 0; i < 5; i++) {
        bad += rdmsr(MSR_CRASH_P0 + i) != 0x1111000011110000ull * (i + 1) + i;
    }
    check_eq(bad, 0, "CRASH_P0-4 read back on processor %u", this_cpu()->index);
}

SUITE(crash)
{
    if (!has_feature("crash")) {
        skip("no hv-crash", "crash MSRs");
        return;
    }
    check_eq(rdmsr(MSR_CRASH_CTL) & CRASH_NOTIFY, CRASH_NOTIFY, "CRASH_CTL: notification is supported");
    for (u32 i = 0; i < 5; i++) {
        wrmsr(MSR_CRASH_P0 + i, 0x1111000011110000ull * (i + 1) + i);
    }
    on_all(read_back, NULL);
    wrmsr(MSR_CRASH_CTL, 0);
    print("notify");
    wrmsr(MSR_CRASH_CTL, CRASH_NOTIFY);
    check(true, "the machine goes on when it is let");
    on_all(read_back, NULL);
}
