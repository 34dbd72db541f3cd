/* SPDX-License-Identifier: MIT */
/* A program that fails in the way that how=fail|fault|hang|triple says, for the tests of the harness. */

#include "lib/guest.h"

SUITE(broken)
{
    struct {
        u16 limit;
        uintptr_t base;
    } __attribute__((packed)) nothing = {0, 0};

    note("before the end");
    if (option("how=fail")) {
        check_eq(2, 3, "two is three");
    } else if (option("how=fault")) {
        __asm__ volatile("ud2");
    } else if (option("how=hang")) {
        for (;;) {
            irq_wait();
        }
    } else if (option("how=triple")) {
        __asm__ volatile("lidt %0; ud2" ::"m"(nothing));
    }
}
