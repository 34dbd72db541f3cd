/* SPDX-License-Identifier: MIT */
/* The local APIC, by MMIO or by the x2APIC's MSRs (Intel SDM 3A, 11). */

#include "guest.h"

#define MSR_APIC_BASE 0x1b
#define APIC_BASE_ENABLE (1u << 11)
#define APIC_BASE_X2 (1u << 10)
#define APIC_MMIO 0xfee00000u
#define X2APIC_MSR 0x800u
#define ICR_BUSY (1u << 12)

bool apic_x2;

u32 apic_read(u32 reg)
{
    if (apic_x2) {
        return (u32)rdmsr(X2APIC_MSR + reg / 16);
    }
    return *(volatile u32 *)(uintptr_t)(APIC_MMIO + reg);
}

void apic_write(u32 reg, u32 value)
{
    if (apic_x2) {
        wrmsr(X2APIC_MSR + reg / 16, value);
    } else {
        *(volatile u32 *)(uintptr_t)(APIC_MMIO + reg) = value;
    }
}

void apic_enable(void)
{
    if (apic_x2) {
        wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | APIC_BASE_ENABLE | APIC_BASE_X2);
    }
    apic_write(APIC_SPURIOUS, 0x100 | VEC_SPURIOUS);
    apic_write(APIC_TPR, 0);
}

void apic_eoi(void)
{
    apic_write(APIC_EOI, 0);
}

void apic_ipi(u32 index, u32 icr_low)
{
    if (apic_x2) {
        wrmsr(X2APIC_MSR + APIC_ICR / 16, (u64)index << 32 | icr_low);
        return;
    }
    while (apic_read(APIC_ICR) & ICR_BUSY) {
        pause();
    }
    apic_write(APIC_ICR + 16, index << 24);
    apic_write(APIC_ICR, icr_low);
}

bool apic_bit(u32 reg, u8 vector)
{
    return apic_read(reg + vector / 32 * 16) >> vector % 32 & 1;
}
