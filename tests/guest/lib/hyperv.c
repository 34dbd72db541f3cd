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

void hv_start(void)
{
    wrmsr(MSR_GUEST_OS_ID, OS_ID);
    wrmsr(MSR_HYPERCALL, (uintptr_t)hypercall_page | 1);
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
        }
    }
    for (u32 i = 0; i < 16; i++) {
        wrmsr(SINT(i), SINT_MASKED);
    }
    wrmsr(MSR_SCONTROL, 0);
    wrmsr(MSR_SIMP, 0);
    wrmsr(MSR_SIEFP, 0);
}

void delay(u64 time)
{
    u64 end = ref_time() + time;

    while (ref_time() < end) {
        pause();
    }
}
