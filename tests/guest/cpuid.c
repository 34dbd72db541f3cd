/* SPDX-License-Identifier: MIT */
/*
 * CPUID leaves 0x40000000 to 0x40000005 (TLFS 2.4), for the flags that the machine was given: each bit that a flag
 * promises, and no other. What a flag stands for is that of QEMU with KVM (docs/system/i386/hyperv.rst).
 */

#include "lib/hyperv.h"

/* Which registers of leaves 3 and 4 a flag shows in. */
static const struct {
    const char *flag;
    u32 features_a, features_b, features_d, hints_a;
} flags[] = {
    {"relaxed", 0, 0, 0, 1u << 5},
    {"vapic", 1u << 4, 0, 0, 0},
    {"time", 1u << 1 | 1u << 9, 0, 0, 0},
    {"crash", 0, 0, 1u << 10, 0},
    {"reset", 1u << 7, 0, 0, 0},
    {"vpindex", 1u << 6, 0, 0, 0},
    {"runtime", 1u << 0, 0, 0, 0},
    {"synic", 1u << 2, 1u << 4 | 1u << 5, 0, 0}, /* EBX: PostMessages, SignalEvents */
    {"stimer", 1u << 3, 0, 0, 0},
    {"stimer-direct", 0, 0, 1u << 19, 0},
    {"frequencies", 1u << 11, 0, 1u << 8, 0},
    {"tlbflush", 0, 0, 0, 1u << 2 | 1u << 11},
    {"tlbflush-ext", 0, 0, 1u << 14, 0},
    {"ipi", 0, 0, 0, 1u << 10 | 1u << 11},
    {"avic", 0, 0, 0, 1u << 9},
    {"xmm-input", 0, 0, 1u << 4, 0},
    {"guest-idle", 1u << 10, 0, 1u << 5, 0},
};

#define ALWAYS_FEATURES_A (1u << 5) /* AccessHypercallMsrs */
#define ALWAYS_FEATURES_D (1u << 3) /* CPU dynamic partitioning: QEMU, for CPU hotplug in Windows */
#define HINT_APIC_MSRS (1u << 3)    /* recommended unless AVIC makes the APIC fast */

static struct cpuid first_leaves[6];

static void same_everywhere(void *arg)
{
    for (u32 i = 0; i < ARRAY_SIZE(first_leaves); i++) {
        struct cpuid here = cpuid(0x40000000 + i, 0);

        if (memcmp(&here, &first_leaves[i], sizeof(here))) {
            *(volatile bool *)arg = true;
        }
    }
}

static void absent(void)
{
    struct cpuid vendor = cpuid(0x40000000, 0);
    u64 value;

    check(cpuid(0x40000001, 0).a != 0x31237648, "without hv-* flags there is no Hv#1");
    check(vendor.b != 0x7263694d, "nor is the vendor Micr...");
    /* What such an MSR does then is the accelerator's own affair; that it is not Hyper-V's counts. */
    wrmsr_safe(MSR_GUEST_OS_ID, OS_ID);
    check(rdmsr_safe(MSR_GUEST_OS_ID, &value) == FAULT_GP || value == 0, "nor does MSR 0x40000000 keep a value");
    __asm__ goto volatile("1: .byte 0x0f, 0x01, 0xc1\n jmp %l[works]\n 2: nop\n" EXTABLE(1b, 2b)::
                              : "rax", "rcx", "rdx", "memory"
                          : works);
    check_eq(this_cpu()->fault, FAULT_UD, "and VMCALL is #UD");
    return;
works:
    check(false, "and VMCALL is #UD");
}

SUITE(cpuid)
{
    u32 features_a = ALWAYS_FEATURES_A, features_b = 0, features_d = ALWAYS_FEATURES_D, hints = 0;
    struct cpuid r;
    bool differs = false;

    check(cpuid(1, 0).c >> 31 || option("hv="), "leaf 1: a hypervisor is present");
    if (option("hv=")) {
        absent();
        return;
    }

    for (u32 i = 0; i < ARRAY_SIZE(flags); i++) {
        if (has_feature(flags[i].flag)) {
            features_a |= flags[i].features_a;
            features_b |= flags[i].features_b;
            features_d |= flags[i].features_d;
            hints |= flags[i].hints_a;
        }
    }
    if (has_feature("vapic") && !has_feature("avic")) {
        hints |= HINT_APIC_MSRS;
    }

    r = cpuid(0x40000000, 0);
    check_eq(r.a, 0x40000005, "leaf 0x40000000 EAX: the last leaf, without nested features");
    check_eq(r.b, 0x7263694d, "EBX: Micr");
    check_eq(r.c, 0x666f736f, "ECX: osof");
    check_eq(r.d, 0x76482074, "EDX: t Hv");
    r = cpuid(0x40000001, 0);
    check_eq(r.a, 0x31237648, "leaf 0x40000001 EAX: Hv#1");
    check_eq(r.b | r.c | r.d, 0, "the rest is reserved");
    r = cpuid(0x40000002, 0);
    check_eq(r.a, option_number("build", 0x3839), "leaf 0x40000002 EAX: build number");
    check_eq(r.b, option_number("version", 0x000a0000), "EBX: major and minor version");
    r = cpuid(0x40000003, 0);
    check_eq(r.a, features_a, "leaf 0x40000003 EAX: privileges, low");
    check_eq(r.b, features_b, "EBX: privileges, high");
    check_eq(r.c, 0, "ECX: reserved");
    check_eq(r.d, features_d, "EDX: features");
    r = cpuid(0x40000004, 0);
    check_eq(r.a, hints, "leaf 0x40000004 EAX: recommendations");
    check_eq(r.b, option_number("spinlocks", 0xffffffff), "EBX: spin-lock attempts before a notification");
    r = cpuid(0x40000005, 0);
    check(r.a == 0 || r.a >= cpu_count, "leaf 0x40000005 EAX: at least so many virtual processors");
    check(r.b == 0 || r.b >= cpu_count, "EBX: at least so many logical processors");

    for (u32 i = 0; i < ARRAY_SIZE(first_leaves); i++) {
        first_leaves[i] = cpuid(0x40000000 + i, 0);
    }
    on_all(same_everywhere, &differs);
    check(!differs, "all processors see the same leaves");
}
