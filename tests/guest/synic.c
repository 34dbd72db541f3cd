/* SPDX-License-Identifier: MIT */
/*
 * The synthetic interrupt controller (TLFS 11): its registers, message slots, the pending flag, EOM and EOI, masked,
 * polled and auto-EOI SINTs. On each processor in turn; the synthetic timers are the source of messages, and VMBus
 * where there is one.
 */

#include "lib/hyperv.h"

#define ME (this_cpu()->index)

/* An expired timer's message for a SINT, as soon as possible. */
static void post(u32 timer, u32 sint)
{
    stimer_shoot(timer, sint, ref_time() - 5);
}

static void empty(u32 sint)
{
    my_slot(sint)->type = 0;
    mfence();
}

/* --- registers --- */

static void at_reset(void *arg)
{
    u32 bad = 0;

    (void)arg;
    check_eq(rdmsr(MSR_SCONTROL), 0, "processor %u: SCONTROL at reset", ME);
    check_eq(rdmsr(MSR_SIMP), 0, "processor %u: SIMP at reset", ME);
    check_eq(rdmsr(MSR_SIEFP), 0, "processor %u: SIEFP at reset", ME);
    for (u32 i = 0; i < 16; i++) {
        bad += rdmsr(SINT(i)) != SINT_MASKED;
    }
    check_eq(bad, 0, "processor %u: SINT0-15 at reset are masked", ME);
    check_eq(rdmsr(MSR_SVERSION), 1, "processor %u: SVERSION", ME);
}

static void registers(void)
{
    struct hv_pages *pages = my_pages();
    u32 not_zero = 0;

    memset(pages->simp, 0xff, PAGE_SIZE);
    memset(pages->siefp, 0xff, PAGE_SIZE);
    hv_synic_start();
    check_eq(rdmsr(MSR_SCONTROL), 1, "SCONTROL reads back");
    check_eq(rdmsr(MSR_SIMP), (uintptr_t)pages->simp | 1, "SIMP reads back");
    check_eq(rdmsr(MSR_SIEFP), (uintptr_t)pages->siefp | 1, "SIEFP reads back");
    for (u32 i = 0; i < PAGE_SIZE; i++) {
        not_zero += pages->simp[i] || pages->siefp[i];
    }
    check_eq(not_zero, 0, "the pages are cleared when they are enabled");
    pages->simp[4000] = 5;
    wrmsr(MSR_SIMP, (uintptr_t)pages->simp | 1);
    check_eq(pages->simp[4000], 5, "but not by writing the same value again");
    pages->simp[4000] = 0;

    for (u32 vector = 0; vector < 16; vector += 5) {
        check_eq(wrmsr_safe(SINT(5), vector), FAULT_GP, "a SINT with vector %u is #GP", vector);
    }
    check_eq(rdmsr(SINT(5)), SINT_MASKED, "and is not changed");
    check_eq(wrmsr_safe(SINT(5), SINT_MASKED), FAULT_NONE, "the reset value can be written");
    check_eq(wrmsr_safe(SINT(5), 16), FAULT_NONE, "vector 16 is valid");
    check_eq(wrmsr_safe(SINT(5), 255), FAULT_NONE, "vector 255 is valid");
    for (u32 i = 0; i < 16; i++) {
        wrmsr(SINT(i), SINT_MASKED | (0x30 + i) | (i & 1 ? SINT_AUTO_EOI : SINT_POLLING));
    }
    for (u32 i = 0; i < 16; i++) {
        u64 value = SINT_MASKED | (0x30 + i) | (i & 1 ? SINT_AUTO_EOI : SINT_POLLING);

        if (rdmsr(SINT(i)) != value) {
            check_eq(rdmsr(SINT(i)), value, "SINT%u reads back", i);
        }
    }
    hv_synic_start();
}

/* --- messages --- */

static void delivery(void)
{
    u64 expiration = ref_time() - 5;
    volatile struct hv_message *slot = my_slot(2);

    wrmsr(SINT(2), VEC_SINT(2));
    stimer_shoot(1, 2, expiration);
    check(wait_for(slot->type), "a message arrives in its slot");
    check(wait_for(irq_count(VEC_SINT(2)) == 1), "with an interrupt");
    check_eq(slot->type, MSG_TIMER_EXPIRED, "type");
    check_eq(slot->size, 24, "payload size");
    check_eq(slot->flags, 0, "no pending flag");
    check_eq(slot->timer.index, 1, "timer index");
    check_eq(slot->timer.expiration, expiration, "expiration time");
    check(slot->timer.delivery >= expiration && slot->timer.delivery <= ref_time(), "delivery time");
}

/* With a message in the slot, and an interrupt had for it. */
static void occupied(void)
{
    volatile struct hv_message *slot = my_slot(2);
    u64 expiration = ref_time() - 7;

    stimer_shoot(2, 2, expiration);
    check(wait_for(slot->flags & MSG_FLAG_PENDING), "a second message sets the pending flag of the first");
    delay(MS / 5);
    check_eq(slot->timer.index, 1, "which stays in the slot");
    check_eq(irq_count(VEC_SINT(2)), 1, "without a second interrupt");
    empty(2);
    delay(MS / 5);
    check_eq(slot->type, 0, "nothing comes without EOM or EOI");
    wrmsr(MSR_EOM, 0);
    check(wait_for(slot->type == MSG_TIMER_EXPIRED), "EOM brings the second message");
    check_eq(slot->timer.index, 2, "timer index");
    check_eq(slot->timer.expiration, expiration, "expiration time");
    check(wait_for(irq_count(VEC_SINT(2)) == 2), "and its interrupt");
    check_eq(slot->flags, 0, "no pending flag");

    stimer_shoot(3, 2, expiration);
    check(wait_for(slot->flags & MSG_FLAG_PENDING), "again pending");
    wrmsr(MSR_EOM, 0);
    delay(MS / 5);
    check_eq(slot->timer.index, 2, "EOM with the slot occupied changes nothing");
    empty(2);
    /* The end of an interrupt with the SINT's vector is the other occasion. */
    apic_ipi(ME, 0x4000 | VEC_SINT(2));
    check(wait_for(slot->type == MSG_TIMER_EXPIRED), "EOI brings a waiting message");
    check_eq(slot->timer.index, 3, "timer index");
    check(wait_for(irq_count(VEC_SINT(2)) == 4), "and its interrupt, after that of the IPI");
    empty(2);
}

static void four_at_once(void)
{
    volatile struct hv_message *slot = my_slot(2);
    u32 had = 0, interrupts = irq_count(VEC_SINT(2));

    slot->type = 1;
    mfence();
    for (u32 i = 0; i < 4; i++) {
        post(i, 2);
    }
    check(wait_for(slot->flags & MSG_FLAG_PENDING), "four timers wait for one slot");
    delay(MS / 2);
    for (u32 i = 0; i < 4; i++) {
        bool more = slot->flags & MSG_FLAG_PENDING;

        empty(2);
        if (i == 0 || more) {
            wrmsr(MSR_EOM, 0);
        }
        if (!wait_for(slot->type == MSG_TIMER_EXPIRED)) {
            break;
        }
        had |= 1u << slot->timer.index;
    }
    empty(2);
    check_eq(had, 15, "each of the four messages comes, by the pending flag and EOM alone");
    check(wait_for(irq_count(VEC_SINT(2)) == interrupts + 4), "each with an interrupt");
}

static void masked(void)
{
    volatile struct hv_message *slot = my_slot(4);

    wrmsr(SINT(4), SINT_MASKED | VEC_SINT(4));
    post(0, 4);
    check(wait_for(slot->type == MSG_TIMER_EXPIRED), "a masked SINT gets its message");
    delay(MS / 2);
    check_eq(irq_count(VEC_SINT(4)), 0, "and no interrupt");
    wrmsr(SINT(4), VEC_SINT(4));
    delay(MS / 2);
    check_eq(irq_count(VEC_SINT(4)), 0, "nor one when it is unmasked: it was lost");
    empty(4);
    wrmsr(SINT(4), SINT_POLLING | VEC_SINT(4));
    post(0, 4);
    check(wait_for(slot->type == MSG_TIMER_EXPIRED), "a polled SINT gets its message");
    delay(MS / 2);
    check_eq(irq_count(VEC_SINT(4)), 0, "and no interrupt");
    empty(4);
    wrmsr(SINT(4), VEC_SINT(4));
    post(0, 4);
    check(wait_for(irq_count(VEC_SINT(4)) == 1), "unmasked, it interrupts");
    empty(4);
}

static void auto_eoi(void)
{
    volatile struct hv_message *slot = my_slot(5);

    irq_no_eoi(VEC_SINT(5), true);
    wrmsr(SINT(5), SINT_AUTO_EOI | VEC_SINT(5));
    for (u32 i = 1; i <= 3; i++) {
        post(0, 5);
        check(wait_for(slot->type && irq_count(VEC_SINT(5)) == i), "auto EOI: interrupt %u without an EOI", i);
        empty(5);
    }
    check(!apic_bit(APIC_ISR, VEC_SINT(5)), "nothing is in service");
    wrmsr(SINT(5), VEC_SINT(5));
    post(0, 5);
    check(wait_for(slot->type && irq_count(VEC_SINT(5)) == 4), "without auto EOI it arrives once more");
    check(apic_bit(APIC_ISR, VEC_SINT(5)), "and stays in service");
    empty(5);
    apic_eoi();
    check(!apic_bit(APIC_ISR, VEC_SINT(5)), "until the EOI");
    irq_no_eoi(VEC_SINT(5), false);
    wrmsr(SINT(5), SINT_MASKED);
}

static void priority(void)
{
    u32 before = irq_count(VEC_SINT(2));

    apic_write(APIC_TPR, VEC_SINT(2));
    post(0, 2);
    check(wait_for(my_slot(2)->type), "TPR does not hold the message");
    delay(MS / 2);
    check_eq(irq_count(VEC_SINT(2)), before, "but its interrupt");
    apic_write(APIC_TPR, 0);
    check(wait_for(irq_count(VEC_SINT(2)) == before + 1), "which comes when TPR is lowered");
    empty(2);
}

static void disabled(void)
{
    u32 before = irq_count(VEC_SINT(2));

    wrmsr(MSR_SIMP, 0);
    post(0, 2);
    delay(MS / 2);
    check_eq(irq_count(VEC_SINT(2)), before, "no interrupt with SIMP disabled");
    wrmsr(MSR_SIMP, (uintptr_t)my_pages()->simp | 1);
    wrmsr(MSR_EOM, 0);
    check(wait_for(my_slot(2)->type == MSG_TIMER_EXPIRED), "the message was queued: it comes with SIMP and EOM");
    empty(2);
    before = irq_count(VEC_SINT(2));
    wrmsr(MSR_SCONTROL, 0);
    /* The host may refuse to start a timer now. */
    wrmsr_safe(STIMER_CONFIG(0), 0);
    wrmsr_safe(STIMER_COUNT(0), 1);
    wrmsr_safe(STIMER_CONFIG(0), STIMER_SINT(2) | STIMER_ENABLE);
    delay(MS / 2);
    check_eq(my_slot(2)->type, 0, "no message with the SynIC disabled");
    check_eq(irq_count(VEC_SINT(2)), before, "and no interrupt");
    wrmsr_safe(STIMER_CONFIG(0), 0);
    wrmsr(MSR_SCONTROL, 1);
    wrmsr(STIMER_CONFIG(0), 0);
    wrmsr(MSR_EOM, 0);
    delay(MS / 5);
    empty(2);
}

static void vmbus(void)
{
    volatile struct hv_message *slot = my_slot(VMBUS_SINT);
    u32 before = irq_count(VEC_SINT(2));

    wrmsr(SINT(VMBUS_SINT), VEC_SINT(2));
    check_eq(vmbus_contact(ME), HV_SUCCESS, "HvPostMessage to VMBus");
    check(wait_for(slot->type), "it answers");
    check(slot->type == 1 && slot->word[0] == VMBUS_VERSION_RESPONSE, "with VERSION_RESPONSE");
    check(wait_for(irq_count(VEC_SINT(2)) == before + 1), "and an interrupt");
    check_eq(vmbus_contact(ME), HV_SUCCESS, "once more");
    check(wait_for(slot->flags & MSG_FLAG_PENDING), "the answer waits for the slot");
    empty(2);
    wrmsr(MSR_EOM, 0);
    check(wait_for(slot->type == 1 && irq_count(VEC_SINT(2)) == before + 2), "and comes after EOM");
    empty(2);
}

static void processor(void *arg)
{
    (void)arg;
    registers();
    delivery();
    occupied();
    four_at_once();
    masked();
    auto_eoi();
    priority();
    disabled();
    if (option("vmbus")) {
        vmbus();
    }
    hv_synic_stop();
}

SUITE(synic)
{
    if (!has_feature("synic") || !has_feature("stimer")) {
        skip("needs hv-synic and hv-stimer", "SynIC");
        return;
    }
    hv_start();
    for (u32 i = 0; i < cpu_count; i++) {
        on_cpu(i, at_reset, NULL);
    }
    /* First and last: the way to those between is the same; smp.c has all at once. */
    on_cpu(0, processor, NULL);
    if (cpu_count > 1) {
        on_cpu(cpu_count - 1, processor, NULL);
    }
    hv_stop();
}
