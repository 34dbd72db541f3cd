/* SPDX-License-Identifier: MIT */
/* Helpers for the Hyper-V interface; lib/hyperv.h says what they do. */

#include "hyperv.h"

struct hv_pages hv_pages[MAX_CPUS];
u8 hypercall_page[PAGE_SIZE] PAGE_ALIGNED;
u8 tsc_page[PAGE_SIZE] PAGE_ALIGNED;

extern u64 hv_call_page(const struct hv_regs *regs, struct cpu *self);

bool has_feature(const char *name)
{
    return option_lists("hv", name);
}

u64 hypercall_at(void *page, u64 control, u64 input, u64 output)
{
    struct cpu *self = this_cpu();
    struct hv_regs regs = {control, input, output};

    self->fault = FAULT_NONE;
    self->call_target = (uintptr_t)page;
    return hv_call_page(&regs, self);
}

u64 hypercall_with(u64 control, const u64 *words, u32 count)
{
    u8 *input = my_pages()->input;

    memcpy(input, words, 8 * count);
    return hypercall(control, (uintptr_t)input, 0);
}

static u64 xmm_block[MAX_CPUS][12] __attribute__((aligned(16)));

u64 hypercall_xmm(u64 control, const u64 *words, u32 count)
{
    u64 *rest = xmm_block[this_cpu()->index];

    for (u32 i = 0; i < 12; i++) {
        rest[i] = i + 2 < count ? words[i + 2] : 0x5a5a000000000000ull + i;
    }
    __asm__ volatile("movups 0(%0), %%xmm0; movups 16(%0), %%xmm1; movups 32(%0), %%xmm2;"
                     "movups 48(%0), %%xmm3; movups 64(%0), %%xmm4; movups 80(%0), %%xmm5" ::"r"(rest)
                     : "memory");
    return hypercall(control | HV_FAST, words[0], words[1]);
}

bool xmm_unchanged(void)
{
    u64 now[12] __attribute__((aligned(16)));

    __asm__ volatile("movups %%xmm0, 0(%0); movups %%xmm1, 16(%0); movups %%xmm2, 32(%0);"
                     "movups %%xmm3, 48(%0); movups %%xmm4, 64(%0); movups %%xmm5, 80(%0)" ::"r"(now)
                     : "memory");
    return !memcmp(now, xmm_block[this_cpu()->index], sizeof(now));
}

u64 vmbus_contact(u32 vp)
{
    u32 *input = (u32 *)my_pages()->input;

    memset(input, 0, 256);
    input[0] = 1;  /* connection id */
    input[2] = 1;  /* message type */
    input[3] = 40; /* payload size */
    input[4] = 14; /* INITIATE_CONTACT */
    input[6] = 0x00040000; /* version 4.0; a host may say no, which is an answer as well */
    input[7] = vp;
    return hypercall(HV_POST_MESSAGE, (uintptr_t)input, 0);
}

void hv_start(void)
{
    wrmsr(MSR_GUEST_OS_ID, OS_ID);
    wrmsr(MSR_HYPERCALL, (uintptr_t)hypercall_page | 1);
}

void hv_stop(void)
{
    wrmsr(MSR_HYPERCALL, 0);
    wrmsr(MSR_GUEST_OS_ID, 0);
}

void hv_synic_start(void)
{
    struct hv_pages *pages = my_pages();

    for (u32 i = 0; i < 16; i++) {
        wrmsr(SINT(i), SINT_MASKED);
    }
    wrmsr(MSR_SIMP, (uintptr_t)pages->simp | 1);
    wrmsr(MSR_SIEFP, (uintptr_t)pages->siefp | 1);
    wrmsr(MSR_SCONTROL, 1);
}

void hv_synic_stop(void)
{
    if (has_feature("stimer")) {
        for (u32 i = 0; i < 4; i++) {
            wrmsr(STIMER_CONFIG(i), 0);
            wrmsr(STIMER_COUNT(i), 0);
        }
    }
    for (u32 i = 0; i < 16; i++) {
        wrmsr(SINT(i), SINT_MASKED);
    }
    wrmsr(MSR_SCONTROL, 0);
    wrmsr(MSR_SIMP, 0);
    wrmsr(MSR_SIEFP, 0);
}

struct timer_log timer_logs[MAX_CPUS];

void log_messages(u8 vector)
{
    struct timer_log *log = my_log();
    u32 sint = vector - VEC_SINT(0);
    volatile struct hv_message *slot = my_slot(sint);

    if (!slot->type) {
        return;
    }
    if (slot->type == MSG_TIMER_EXPIRED) {
        u32 at = log->count % ARRAY_SIZE(log->entry);

        log->entry[at].index = slot->timer.index;
        log->entry[at].sint = sint;
        log->entry[at].expiration = slot->timer.expiration;
        log->entry[at].delivery = slot->timer.delivery;
        if (slot->timer.delivery < slot->timer.expiration || ref_time() < slot->timer.expiration) {
            log->early++;
        }
        barrier();
        log->count++;
    } else {
        log->others++;
    }
    slot->type = 0;
    mfence();
    if (slot->flags & MSG_FLAG_PENDING) {
        wrmsr(MSR_EOM, 0);
    }
}

void hv_synic_log(void)
{
    hv_synic_start();
    memset(my_log(), 0, sizeof(struct timer_log));
    for (u32 i = 1; i < 16; i++) {
        irq_handler(VEC_SINT(i), log_messages);
        wrmsr(SINT(i), VEC_SINT(i));
    }
}

void stimer_shoot(u32 timer, u32 sint, u64 expiration)
{
    wrmsr(STIMER_CONFIG(timer), 0);
    wrmsr(STIMER_COUNT(timer), expiration);
    wrmsr(STIMER_CONFIG(timer), STIMER_SINT(sint) | STIMER_ENABLE);
}

void delay(u64 time)
{
    u64 end = ref_time() + time;

    while (ref_time() < end) {
        pause();
    }
}
