/* SPDX-License-Identifier: MIT */
/* The framework checks itself: what the other suites rely on. */

#include "lib/guest.h"

static volatile u32 seen[MAX_CPUS];

static void mark(void *arg)
{
    (void)arg;
    seen[this_cpu()->index]++;
}

SUITE(self)
{
    u64 value;
    struct cpu *self = this_cpu();

    check_eq(self->index, 0, "the boot processor is processor 0");
    for (u32 round = 0; round < 20; round++) {
        on_all(mark, NULL);
    }
    for (u32 i = 0; i < cpu_count; i++) {
        check_eq(seen[i], 20, "processor %u runs what it is given", i);
    }
    check_eq(wrmsr_safe(0x1b, ~0ull), FAULT_GP, "a fault of WRMSR is survived");
    check_eq(rdmsr_safe(0x1b, &value), FAULT_NONE, "RDMSR works");
    check_eq(irq_count(VEC_WAKE), 0, "no wake-up for the boot processor");
    apic_ipi(0, 0x4000 | 0x50);
    while (!irq_count(0x50)) {
        pause();
    }
    check_eq(irq_count(0x50), 1, "an IPI to itself arrives once");
}
