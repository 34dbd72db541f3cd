/* SPDX-License-Identifier: MIT */
/* The APIC's MSRs and the lazy EOI by the VP assist page (TLFS 10.2.1, 10.3.5), by MMIO APIC and x2APIC alike. */

#include "lib/hyperv.h"

#define VEC_LOW 0x50
#define VEC_MID 0x70
#define VEC_HIGH 0x90
#define ICR_SELF_FIXED 0x44000u /* shorthand self, assert */

static volatile u32 *assist(void)
{
    return (volatile u32 *)(void *)my_pages()->assist;
}

static bool take_assist_bit(void)
{
    bool was;

    __asm__ volatile("lock; btrl $0, %0; setc %1" : "+m"(*assist()), "=q"(was)::"memory");
    return was;
}

/* --- EOI, ICR, TPR --- */

static void eoi(void)
{
    check_eq(wrmsr_safe(MSR_EOI, 1ull << 32), FAULT_GP, "EOI: bits 63:32 are reserved");
    irq_no_eoi(VEC_MID, true);
    apic_ipi(this_cpu()->index, 0x4000 | VEC_MID);
    check(wait_for(irq_count(VEC_MID) == 1), "an interrupt without EOI arrives");
    check(apic_bit(APIC_ISR, VEC_MID), "and stays in service");
    apic_ipi(this_cpu()->index, 0x4000 | VEC_LOW);
    delay(1 * MS);
    check_eq(irq_count(VEC_LOW), 0, "one of lower priority has to wait");
    check_eq(wrmsr_safe(MSR_EOI, 0), FAULT_NONE, "write to EOI");
    check(!apic_bit(APIC_ISR, VEC_MID), "which ends the service");
    check(wait_for(irq_count(VEC_LOW) == 1), "and lets the other one in");
    irq_no_eoi(VEC_MID, false);
}

static void icr(void)
{
    u32 self = this_cpu()->index;

    for (u32 i = 0; i < cpu_count; i++) {
        u64 destination = apic_x2 ? (u64)i << 32 : (u64)i << 56;

        if (i == self) {
            continue;
        }
        wrmsr(MSR_ICR, destination | 0x4000 | VEC_LOW);
        check(wait_for(cpu_at(i)->irqs[VEC_LOW] == 1), "ICR sends an IPI to processor %u", i);
        check_eq(rdmsr(MSR_ICR) & ~0x1000ull, destination | 0x4000 | VEC_LOW, "and reads back");
    }
    irq_reset();
    wrmsr(MSR_ICR, ICR_SELF_FIXED | VEC_LOW);
    check(wait_for(irq_count(VEC_LOW) == 1), "ICR with the shorthand of itself");
    wrmsr(MSR_ICR, 0xc4000 | VEC_MID); /* all excluding self */
    for (u32 i = 0; i < cpu_count; i++) {
        if (i != self) {
            check(wait_for(cpu_at(i)->irqs[VEC_MID] == 1), "ICR to all but itself: processor %u", i);
        }
    }
    check_eq(irq_count(VEC_MID), 0, "and not itself");
}

static void tpr(void)
{
    wrmsr(MSR_TPR, 0x37);
    check_eq(rdmsr(MSR_TPR), 0x37, "TPR reads back");
    check_eq(apic_read(APIC_TPR), 0x37, "and is the APIC's");
#ifdef __x86_64__
    u64 cr8;

    __asm__ volatile("mov %%cr8, %0" : "=r"(cr8));
    check_eq(cr8, 3, "and CR8's");
#endif
    check_eq(wrmsr_safe(MSR_TPR, 1ull << 32), FAULT_GP, "TPR: bits 63:32 are reserved");
    /* "should be zero": what happens if they are not is up to the host, as long as it is not a priority */
    check(wrmsr_safe(MSR_TPR, 0x137) == FAULT_GP || rdmsr(MSR_TPR) == 0x37, "TPR: bits 31:8 are reserved");
    irq_reset();
    wrmsr(MSR_TPR, VEC_LOW);
    apic_ipi(this_cpu()->index, 0x4000 | VEC_LOW);
    apic_ipi(this_cpu()->index, 0x4000 | VEC_HIGH);
    check(wait_for(irq_count(VEC_HIGH) == 1), "TPR lets a higher priority pass");
    delay(1 * MS);
    check_eq(irq_count(VEC_LOW), 0, "and holds its own");
    wrmsr(MSR_TPR, 0);
    check(wait_for(irq_count(VEC_LOW) == 1), "which comes when TPR is lowered");
}

/* --- lazy EOI --- */

static volatile u32 omitted[MAX_CPUS], written[MAX_CPUS];

/* What a guest does instead of EOI. */
static void lazy_eoi(u8 vector)
{
    u32 index = this_cpu()->index;

    (void)vector;
    if (take_assist_bit()) {
        omitted[index]++;
    } else {
        written[index]++;
        wrmsr(MSR_EOI, 0);
    }
}

static volatile bool bit_at_entry, bit_after_request;

/* While this one is in service, one of lower priority is requested: then the EOI has to be seen by the host. */
static void nested(u8 vector)
{
    (void)vector;
    bit_at_entry = *assist() & 1;
    apic_ipi(this_cpu()->index, 0x4000 | VEC_LOW);
    bit_after_request = *assist() & 1;
    lazy_eoi(vector);
}

static void note_bit(u8 vector)
{
    bit_at_entry = *assist() & 1;
    lazy_eoi(vector);
}

static void assist_on(void *arg)
{
    (void)arg;
    wrmsr(MSR_VP_ASSIST_PAGE, (uintptr_t)my_pages()->assist | 1);
}

static void assist_off(void *arg)
{
    (void)arg;
    wrmsr(MSR_VP_ASSIST_PAGE, 0);
}

static void from_another(void *arg)
{
    u32 target = *(u32 *)arg;

    for (u32 i = 0; i < 1000; i++) {
        u32 before = cpu_at(target)->irqs[VEC_MID];

        apic_ipi(target, 0x4000 | VEC_MID);
        if (!wait_for(cpu_at(target)->irqs[VEC_MID] == before + 1)) {
            note("interrupt %u did not arrive", i);
            break;
        }
    }
}

static void lazy(void)
{
    u32 self = this_cpu()->index, before;

    irq_reset();
    memset(my_pages()->assist, 0xff, PAGE_SIZE);
    wrmsr(MSR_VP_ASSIST_PAGE, (uintptr_t)my_pages()->assist | 1);
    check_eq(rdmsr(MSR_VP_ASSIST_PAGE), (uintptr_t)my_pages()->assist | 1, "VP_ASSIST_PAGE keeps what is written");
    check_eq(*assist(), 0, "the EOI assist field starts as 0");

    irq_handler(VEC_MID, lazy_eoi);
    irq_no_eoi(VEC_MID, true);
    omitted[self] = written[self] = 0;
    for (u32 i = 1; i <= 1000; i++) {
        apic_ipi(self, 0x4000 | VEC_MID);
        if (!wait_for(irq_count(VEC_MID) == i)) {
            break;
        }
    }
    check_eq(irq_count(VEC_MID), 1000, "interrupts with lazy EOI: each of 1000 arrives, once");
    note("%u EOIs omitted, %u written", omitted[self], written[self]);
    check(omitted[self] > 0, "the EOI can be omitted (bit 0 is set when there is nothing else)");
    check(!apic_bit(APIC_ISR, VEC_MID), "nothing is in service afterwards");

    /* A lower one is requested during the service. */
    irq_handler(VEC_HIGH, nested);
    irq_handler(VEC_LOW, lazy_eoi);
    irq_no_eoi(VEC_HIGH, true);
    irq_no_eoi(VEC_LOW, true);
    written[self] = 0;
    apic_ipi(self, 0x4000 | VEC_HIGH);
    check(wait_for(irq_count(VEC_LOW) == 1), "one requested during the service arrives afterwards");
    check(bit_at_entry, "bit 0 was set when the first one arrived");
    check(!bit_after_request, "and cleared when the second one was requested");
    check(written[self] >= 1, "so its EOI was written");

    /* A lower one is pending when the higher arrives. */
    irq_reset();
    irq_handler(VEC_HIGH, note_bit);
    irq_handler(VEC_LOW, lazy_eoi);
    irq_no_eoi(VEC_HIGH, true);
    irq_no_eoi(VEC_LOW, true);
    irq_disable();
    apic_ipi(self, 0x4000 | VEC_LOW);
    apic_ipi(self, 0x4000 | VEC_HIGH);
    irq_enable();
    check(wait_for(irq_count(VEC_LOW) == 1 && irq_count(VEC_HIGH) == 1), "two at once both arrive");
    check(!bit_at_entry, "bit 0 is not set with a lower one pending");

    /* An EOI is allowed all the same, as the APIC has it. */
    irq_reset();
    irq_no_eoi(VEC_MID, false);
    for (u32 i = 1; i <= 100 && (irq_count(VEC_MID) == i - 1); i++) {
        apic_ipi(self, 0x4000 | VEC_MID);
        wait_for(irq_count(VEC_MID) == i);
    }
    check_eq(irq_count(VEC_MID), 100, "an EOI although it could be omitted does no harm");

    /* Its processor sleeps, the interrupts come from another one. */
    if (cpu_count > 1) {
        irq_reset();
        irq_handler(VEC_MID, lazy_eoi);
        irq_no_eoi(VEC_MID, true);
        on_all(assist_on, NULL);
        for (u32 i = 1; i < cpu_count; i++) {
            u32 target = i;

            from_another(&target);
            check_eq(cpu_at(i)->irqs[VEC_MID], 1000, "1000 IPIs to processor %u with lazy EOI, each once", i);
        }
        on_all(assist_off, NULL);
    }
    wrmsr(MSR_VP_ASSIST_PAGE, 0);
    *assist() = 0;
    irq_reset();
    before = irq_count(VEC_LOW);
    apic_ipi(self, 0x4000 | VEC_LOW);
    check(wait_for(irq_count(VEC_LOW) == before + 1) && !*assist(), "a disabled page is left alone");
}

SUITE(apic)
{
    if (!has_feature("vapic") || !has_feature("time")) {
        skip("needs hv-vapic and hv-time", "APIC MSRs");
        return;
    }
    eoi();
    icr();
    tpr();
    lazy();
}
