/* SPDX-License-Identifier: MIT */
/*
 * The hypercall interface itself (TLFS 3) and the status of each call for good and bad input (TLFS 10, 11, 12, and
 * the pages of the calls). What the calls do is for ipi.c, flush.c and synic.c.
 *
 * TLFS 3.11.3: with more than one error, a host may choose; so each case here has one only.
 */

#include "lib/hyperv.h"

#define S(status) (1u << (status))
/* Where TLFS names no status for bad input, the two that hosts use. */
#define BAD_INPUT (S(HV_INVALID_HYPERCALL_INPUT) | S(HV_INVALID_PARAMETER))
/* A call without its privilege; TLFS wants ACCESS_DENIED for post and signal. */
#define REFUSED (S(HV_ACCESS_DENIED) | S(HV_INVALID_HYPERCALL_CODE))

#define NOWHERE (1ull << 45) /* no RAM there */

enum how { IN_MEMORY, IN_REGISTERS, AT };

struct call {
    const char *name, *feature;
    u64 control;
    enum how how;
    u64 at; /* IN_MEMORY: offset in the input page; AT: the address given */
    u64 words[6];
    u32 allowed; /* S() of each status */
    u32 reps;    /* completed, with success */
};

#define POST_OK 1, 1ull | 40ull << 32 /* connection 1; type 1, 40 bytes: 0 as a channel message */
#define ALL_VPS (~0ull)

static const struct call calls[] = {
    /* control word */
    {"unknown code", NULL, 0x7777, IN_MEMORY, 0, {0}, S(HV_INVALID_HYPERCALL_CODE), 0},
    {"code 0", NULL, 0, IN_MEMORY, 0, {0}, S(HV_INVALID_HYPERCALL_CODE), 0},
    {"extended capabilities, without EnableExtendedHypercalls", NULL, HV_EXT_QUERY_CAPABILITIES, IN_MEMORY, 0, {0},
     S(HV_ACCESS_DENIED), 0},
    {"reserved bit 27", "synic", HV_SIGNAL_EVENT | HV_FAST | 1ull << 27, IN_REGISTERS, 0, {0x77},
     S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"reserved bit 31", "synic", HV_SIGNAL_EVENT | HV_FAST | 1ull << 31, IN_REGISTERS, 0, {0x77},
     S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"reserved bit 44", "synic", HV_SIGNAL_EVENT | HV_FAST | 1ull << 44, IN_REGISTERS, 0, {0x77},
     S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"reserved bit 60", "synic", HV_SIGNAL_EVENT | HV_FAST | 1ull << 60, IN_REGISTERS, 0, {0x77},
     S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"reserved bit 63", "synic", HV_SIGNAL_EVENT | HV_FAST | 1ull << 63, IN_REGISTERS, 0, {0x77},
     S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"rep count for a simple call", "synic", HV_SIGNAL_EVENT | HV_FAST | HV_REPS(1), IN_REGISTERS, 0, {0x77},
     S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"rep start for a simple call", "synic", HV_SIGNAL_EVENT | HV_FAST | HV_REP_START(1), IN_REGISTERS, 0, {0x77},
     S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"variable header for a call without", "synic", HV_SIGNAL_EVENT | HV_FAST | HV_VARHEAD(1), IN_REGISTERS, 0, {0x77},
     S(HV_INVALID_HYPERCALL_INPUT), 0},

    /* signal event */
    {"signal: unknown connection, fast", "synic", HV_SIGNAL_EVENT | HV_FAST, IN_REGISTERS, 0, {0x77},
     S(HV_INVALID_CONNECTION_ID), 0},
    {"signal: unknown connection, in memory", "synic", HV_SIGNAL_EVENT, IN_MEMORY, 64, {0x77},
     S(HV_INVALID_CONNECTION_ID), 0},
    {"signal: input at the end of a page", "synic", HV_SIGNAL_EVENT, IN_MEMORY, 4088, {0x77},
     S(HV_INVALID_CONNECTION_ID), 0},
    {"signal: misaligned input", "synic", HV_SIGNAL_EVENT, IN_MEMORY, 4, {0x77}, S(HV_INVALID_ALIGNMENT), 0},
    {"signal: input outside RAM", "synic", HV_SIGNAL_EVENT, AT, NOWHERE, {0}, S(HV_INVALID_ALIGNMENT), 0},
    {"signal: reserved bits of the input", "synic", HV_SIGNAL_EVENT | HV_FAST, IN_REGISTERS, 0, {1ull << 48 | 0x77},
     BAD_INPUT | S(HV_INVALID_CONNECTION_ID), 0},
    {"signal: flag of an unknown connection", "synic", HV_SIGNAL_EVENT | HV_FAST, IN_REGISTERS, 0,
     {1ull << 32 | 0x77}, BAD_INPUT | S(HV_INVALID_CONNECTION_ID) | S(HV_INVALID_PORT_ID), 0},
    {"signal without hv-synic", "!synic", HV_SIGNAL_EVENT | HV_FAST, IN_REGISTERS, 0, {0x77}, S(HV_ACCESS_DENIED), 0},

    /* post message */
    {"post: unknown connection", "synic", HV_POST_MESSAGE, IN_MEMORY, 0, {0x77, 1ull | 8ull << 32},
     S(HV_INVALID_CONNECTION_ID), 0},
    {"post: 241 bytes", "synic", HV_POST_MESSAGE, IN_MEMORY, 0, {1, 1ull | 241ull << 32}, S(HV_INVALID_PARAMETER), 0},
    {"post: 2^32 - 1 bytes", "synic", HV_POST_MESSAGE, IN_MEMORY, 0, {1, 1ull | 0xffffffffull << 32},
     S(HV_INVALID_PARAMETER), 0},
    {"post: type 0", "synic", HV_POST_MESSAGE, IN_MEMORY, 0, {1, 40ull << 32}, S(HV_INVALID_PARAMETER), 0},
    {"post: type of the hypervisor", "synic", HV_POST_MESSAGE, IN_MEMORY, 0, {1, 0x80000010ull | 40ull << 32},
     S(HV_INVALID_PARAMETER), 0},
    {"post: misaligned input", "synic", HV_POST_MESSAGE, IN_MEMORY, 4, {POST_OK}, S(HV_INVALID_ALIGNMENT), 0},
    {"post: input across a page", "synic", HV_POST_MESSAGE, IN_MEMORY, 4096 - 248, {POST_OK}, S(HV_INVALID_ALIGNMENT),
     0},
    {"post: input outside RAM", "synic", HV_POST_MESSAGE, AT, NOWHERE, {0}, S(HV_INVALID_ALIGNMENT), 0},
    {"post without hv-synic", "!synic", HV_POST_MESSAGE, IN_MEMORY, 0, {POST_OK}, S(HV_ACCESS_DENIED), 0},

    /* long spin wait */
    {"long spin wait, fast", "spinlocks", HV_LONG_SPIN_WAIT | HV_FAST, IN_REGISTERS, 0, {0xfff}, S(HV_SUCCESS), 0},
    {"long spin wait, in memory", "spinlocks", HV_LONG_SPIN_WAIT, IN_MEMORY, 8, {0xfff}, S(HV_SUCCESS), 0},

    /* flush: the flags and the list */
    {"flush space, all processors", "tlbflush", HV_FLUSH_SPACE, IN_MEMORY, 0,
     {0, FLUSH_ALL_PROCESSORS | FLUSH_ALL_SPACES, 0}, S(HV_SUCCESS), 0},
    {"flush space, a mask", "tlbflush", HV_FLUSH_SPACE, IN_MEMORY, 0, {0, FLUSH_ALL_SPACES, 1}, S(HV_SUCCESS), 0},
    {"flush space, non-global only", "tlbflush", HV_FLUSH_SPACE, IN_MEMORY, 0,
     {0, FLUSH_ALL_SPACES | FLUSH_NON_GLOBAL_ONLY, 1}, S(HV_SUCCESS), 0},
    {"flush space, a reserved flag", "tlbflush", HV_FLUSH_SPACE, IN_MEMORY, 0, {0, FLUSH_ALL_SPACES | 1ull << 20, 1},
     BAD_INPUT, 0},
    {"flush space with a rep count", "tlbflush", HV_FLUSH_SPACE | HV_REPS(1), IN_MEMORY, 0, {0, FLUSH_ALL_SPACES, 1},
     S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"flush space, input across a page", "tlbflush", HV_FLUSH_SPACE, IN_MEMORY, 4096 - 16, {0, FLUSH_ALL_SPACES},
     S(HV_INVALID_ALIGNMENT), 0},
    {"flush list, one", "tlbflush", HV_FLUSH_LIST | HV_REPS(1), IN_MEMORY, 0, {0, FLUSH_ALL_SPACES, 1, WINDOW},
     S(HV_SUCCESS), 1},
    {"flush list, three", "tlbflush", HV_FLUSH_LIST | HV_REPS(3), IN_MEMORY, 8,
     {0, FLUSH_ALL_SPACES, 1, WINDOW, WINDOW | 0xfff, ~0xfffull}, S(HV_SUCCESS), 3},
    {"flush list, from the third of three", "tlbflush", HV_FLUSH_LIST | HV_REPS(3) | HV_REP_START(2), IN_MEMORY, 0,
     {0, FLUSH_ALL_SPACES, 1, WINDOW, WINDOW, WINDOW}, S(HV_SUCCESS), 3},
    {"flush list, no reps", "tlbflush", HV_FLUSH_LIST, IN_MEMORY, 0, {0, FLUSH_ALL_SPACES, 1},
     S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"flush list, start = count", "tlbflush", HV_FLUSH_LIST | HV_REPS(2) | HV_REP_START(2), IN_MEMORY, 0,
     {0, FLUSH_ALL_SPACES, 1, WINDOW, WINDOW}, S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"flush list, start > count", "tlbflush", HV_FLUSH_LIST | HV_REPS(1) | HV_REP_START(2), IN_MEMORY, 0,
     {0, FLUSH_ALL_SPACES, 1, WINDOW, WINDOW}, S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"flush list, non-global only", "tlbflush", HV_FLUSH_LIST | HV_REPS(1), IN_MEMORY, 0,
     {0, FLUSH_ALL_SPACES | FLUSH_NON_GLOBAL_ONLY, 1, WINDOW}, BAD_INPUT, 0},
    {"flush list, list across a page", "tlbflush", HV_FLUSH_LIST | HV_REPS(3), IN_MEMORY, 4096 - 40,
     {0, FLUSH_ALL_SPACES, 1, WINDOW, WINDOW}, S(HV_INVALID_ALIGNMENT), 0},
    {"flush list, longer than a page", "tlbflush", HV_FLUSH_LIST | HV_REPS(4095), IN_MEMORY, 0,
     {0, FLUSH_ALL_SPACES, 1, WINDOW, WINDOW}, S(HV_INVALID_ALIGNMENT), 0},
    {"flush list with a variable header", "tlbflush", HV_FLUSH_LIST | HV_REPS(1) | HV_VARHEAD(1), IN_MEMORY, 0,
     {0, FLUSH_ALL_SPACES, 1, WINDOW}, S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"flush space ex, all", "tlbflush", HV_FLUSH_SPACE_EX, IN_MEMORY, 0, {0, FLUSH_ALL_SPACES, VP_SET_ALL, 0},
     S(HV_SUCCESS), 0},
    {"flush space ex, one bank", "tlbflush", HV_FLUSH_SPACE_EX | HV_VARHEAD(1), IN_MEMORY, 0,
     {0, FLUSH_ALL_SPACES, VP_SET_SPARSE, 1, ALL_VPS}, S(HV_SUCCESS), 0},
    {"flush space ex, no bank", "tlbflush", HV_FLUSH_SPACE_EX, IN_MEMORY, 0, {0, FLUSH_ALL_SPACES, VP_SET_SPARSE, 0},
     S(HV_SUCCESS), 0},
    {"flush space ex, a bank without its mask", "tlbflush", HV_FLUSH_SPACE_EX, IN_MEMORY, 0,
     {0, FLUSH_ALL_SPACES, VP_SET_SPARSE, 1}, BAD_INPUT, 0},
    {"flush space ex, unknown format", "tlbflush", HV_FLUSH_SPACE_EX, IN_MEMORY, 0, {0, FLUSH_ALL_SPACES, 2, 0},
     BAD_INPUT, 0},
    {"flush list ex, one bank, two ranges", "tlbflush", HV_FLUSH_LIST_EX | HV_VARHEAD(1) | HV_REPS(1), IN_MEMORY, 0,
     {0, FLUSH_ALL_SPACES, VP_SET_SPARSE, 1, ALL_VPS, WINDOW}, S(HV_SUCCESS), 1},
    {"flush list ex, no reps", "tlbflush", HV_FLUSH_LIST_EX | HV_VARHEAD(1), IN_MEMORY, 0,
     {0, FLUSH_ALL_SPACES, VP_SET_SPARSE, 1, ALL_VPS}, S(HV_INVALID_HYPERCALL_INPUT), 0},
    {"flush without hv-tlbflush", "!tlbflush", HV_FLUSH_SPACE, IN_MEMORY, 0,
     {0, FLUSH_ALL_PROCESSORS | FLUSH_ALL_SPACES, 0}, REFUSED, 0},

    /* IPI */
    {"IPI to nobody, fast", "ipi", HV_SEND_IPI | HV_FAST, IN_REGISTERS, 0, {0x50, 0}, S(HV_SUCCESS), 0},
    {"IPI to nobody, in memory", "ipi", HV_SEND_IPI, IN_MEMORY, 0, {0x50, 0}, S(HV_SUCCESS), 0},
    {"IPI, vector 15", "ipi", HV_SEND_IPI | HV_FAST, IN_REGISTERS, 0, {15, 1}, BAD_INPUT, 0},
    {"IPI, vector 256", "ipi", HV_SEND_IPI | HV_FAST, IN_REGISTERS, 0, {256, 1}, BAD_INPUT, 0},
    {"IPI to VTL 1", "ipi", HV_SEND_IPI, IN_MEMORY, 0, {0x50 | 0x11ull << 32, 0}, BAD_INPUT, 0},
    {"IPI, misaligned input", "ipi", HV_SEND_IPI, IN_MEMORY, 4, {0x50, 0}, S(HV_INVALID_ALIGNMENT), 0},
    {"IPI ex to nobody", "ipi", HV_SEND_IPI_EX | HV_VARHEAD(1), IN_MEMORY, 0, {0x50, VP_SET_SPARSE, 1, 0},
     S(HV_SUCCESS), 0},
    {"IPI ex, two banks of which one is given", "ipi", HV_SEND_IPI_EX | HV_VARHEAD(1), IN_MEMORY, 0,
     {0x50, VP_SET_SPARSE, 3, 0}, BAD_INPUT, 0},
    {"IPI ex, unknown format", "ipi", HV_SEND_IPI_EX, IN_MEMORY, 0, {0x50, 2, 0}, BAD_INPUT, 0},
    {"IPI ex, vector 15", "ipi", HV_SEND_IPI_EX | HV_VARHEAD(1), IN_MEMORY, 0, {15, VP_SET_SPARSE, 1, 1}, BAD_INPUT, 0},
    {"IPI without hv-ipi", "!ipi", HV_SEND_IPI | HV_FAST, IN_REGISTERS, 0, {0x50, 0}, REFUSED, 0},
};

static u8 two_pages[2 * PAGE_SIZE] PAGE_ALIGNED;

static void one_call(const struct call *c)
{
    u64 result;

    switch (c->how) {
    case IN_MEMORY:
        memset(two_pages, 0, sizeof(two_pages));
        memcpy(two_pages + c->at, c->words, sizeof(c->words));
        result = hypercall(c->control, (uintptr_t)two_pages + c->at, 0);
        break;
    case IN_REGISTERS:
        result = hypercall(c->control, c->words[0], c->words[1]);
        break;
    default:
        result = hypercall(c->control, c->at, 0);
    }
    if (!check_eq(this_cpu()->fault, FAULT_NONE, "%s: no fault", c->name)) {
        return;
    }
    if (!(c->allowed >> HV_STATUS(result) & 1)) {
        u32 first = 0;

        while (!(c->allowed >> first & 1)) {
            first++;
        }
        check_eq(HV_STATUS(result), first, "%s: status", c->name);
        return;
    }
    check_eq(HV_REPS_DONE(result), HV_STATUS(result) ? 0 : c->reps, "%s: status %u, reps completed", c->name,
             HV_STATUS(result));
}

static void table(void)
{
    for (u32 i = 0; i < ARRAY_SIZE(calls); i++) {
        const char *feature = calls[i].feature;

        if (!feature || (feature[0] == '!' ? !has_feature(feature + 1) : has_feature(feature))) {
            one_call(&calls[i]);
        }
    }
}

/* --- the page and its MSR --- */

extern void user_call(struct cpu *self);

static void from_ring_3(void)
{
    struct cpu *self = this_cpu();
    static const u8 ret[] = {0xc3};

    self->call_target = (uintptr_t)ret;
    self->fault = 99;
    user_call(self);
    check_eq(self->fault, FAULT_NONE, "ring 3 works (a call of RET)");
    self->call_target = (uintptr_t)hypercall_page;
    user_call(self);
    check_eq(self->fault, FAULT_UD, "a hypercall from ring 3 is #UD");
}

static void same_msr(void *arg)
{
    check_eq(rdmsr(MSR_HYPERCALL), *(u64 *)arg, "HYPERCALL on processor %u", this_cpu()->index);
}

static u32 vmcall_fault(void)
{
    static const u8 code[] = {0x0f, 0x01, 0xc1, 0xc3};

    hypercall_at((void *)(uintptr_t)code, HV_SIGNAL_EVENT | HV_FAST, 0x77, 0);
    return this_cpu()->fault;
}

static void page(void)
{
    u64 value = (uintptr_t)hypercall_page | 1;
    static u8 other_page[PAGE_SIZE] PAGE_ALIGNED;

    check_eq(vmcall_fault(), FAULT_UD, "a hypercall without a guest OS id is #UD");
    wrmsr(MSR_HYPERCALL, value);
    check_eq(rdmsr(MSR_HYPERCALL) & 1, 0, "without a guest OS id the page cannot be enabled");
    wrmsr(MSR_GUEST_OS_ID, OS_ID);
    check_eq(wrmsr_safe(MSR_HYPERCALL, NOWHERE | 1), FAULT_GP, "the page cannot be outside RAM");
    check_eq(rdmsr(MSR_HYPERCALL) & 1, 0, "and is not enabled then");
    wrmsr(MSR_HYPERCALL, value);
    on_all(same_msr, &value);
    hypercall(0x7777, 0, 0);
    check_eq(this_cpu()->fault, FAULT_NONE, "the page can be called");
    value = (uintptr_t)other_page | 1;
    wrmsr(MSR_HYPERCALL, value);
    on_all(same_msr, &value);
    check_eq(HV_STATUS(hypercall_at(other_page, 0x7777, 0, 0)), HV_INVALID_HYPERCALL_CODE, "the page can be moved");
    wrmsr(MSR_GUEST_OS_ID, 0);
    check_eq(rdmsr(MSR_HYPERCALL) & 1, 0, "without the id it is disabled");
    hypercall_at(other_page, 0x7777, 0, 0);
    check_eq(this_cpu()->fault, FAULT_UD, "and a call is #UD");
    hv_start();
    check_eq(HV_STATUS(hypercall(0x7777, 0, 0)), HV_INVALID_HYPERCALL_CODE, "with the id it can be enabled again");
    wrmsr(MSR_HYPERCALL, (uintptr_t)hypercall_page);
    check_eq(rdmsr(MSR_HYPERCALL), (uintptr_t)hypercall_page, "it can be disabled");
    wrmsr(MSR_HYPERCALL, (uintptr_t)hypercall_page | 1);
}

#ifdef __x86_64__
/* TLFS 3.10: of the registers, only RAX is changed by a simple call; by a rep call RCX too. */
static void registers(u64 control, const char *name)
{
    static u64 before[16], after[16];
    u64 *words = (u64 *)(void *)my_pages()->input;
    bool same = true;

    if (!has_feature("tlbflush")) {
        return;
    }
    words[0] = 0;
    words[1] = FLUSH_ALL_SPACES;
    words[2] = 1;
    words[3] = words[4] = WINDOW;
    for (u32 i = 0; i < 16; i++) {
        before[i] = 0x1111111111111111ull * i;
    }
    before[1] = control;
    before[2] = (uintptr_t)words;
    __asm__ volatile("push %%rbp; push %%rbx\n"
                     "mov %1, %%rax\n"
                     "mov 8(%%rax), %%rcx; mov 16(%%rax), %%rdx; mov 24(%%rax), %%rbx; mov 48(%%rax), %%rsi\n"
                     "mov 40(%%rax), %%rbp; mov 56(%%rax), %%rdi; mov 64(%%rax), %%r8; mov 72(%%rax), %%r9\n"
                     "mov 80(%%rax), %%r10; mov 88(%%rax), %%r11; mov 96(%%rax), %%r12; mov 104(%%rax), %%r13\n"
                     "mov 112(%%rax), %%r14; mov 120(%%rax), %%r15\n"
                     "call hypercall_page; mov %0, %%rax\n"
                     "mov %%rcx, 8(%%rax); mov %%rdx, 16(%%rax); mov %%rbx, 24(%%rax); mov %%rsi, 48(%%rax)\n"
                     "mov %%rbp, 40(%%rax); mov %%rdi, 56(%%rax); mov %%r8, 64(%%rax); mov %%r9, 72(%%rax)\n"
                     "mov %%r10, 80(%%rax); mov %%r11, 88(%%rax); mov %%r12, 96(%%rax); mov %%r13, 104(%%rax)\n"
                     "mov %%r14, 112(%%rax); mov %%r15, 120(%%rax)\n"
                     "pop %%rbx; pop %%rbp" ::"i"(after),
                     "i"(before)
                     : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                       "memory", "cc");
    for (u32 i = 2; i < 16; i++) {
        if (i != 4 && after[i] != before[i]) {
            note("register %u: 0x%llx, was 0x%llx", i, (unsigned long long)after[i], (unsigned long long)before[i]);
            same = false;
        }
    }
    check(same, "%s changes no register that it must not", name);
}
#endif

/* --- fast input in XMM registers --- */

static void xmm(void)
{
    u64 words[] = {0, FLUSH_ALL_SPACES, 1, WINDOW, WINDOW | 3, WINDOW, WINDOW, WINDOW, WINDOW, WINDOW, WINDOW,
                   WINDOW, WINDOW, WINDOW};
    u64 set[] = {0, FLUSH_ALL_SPACES, VP_SET_SPARSE, 1, 1, WINDOW, WINDOW};
    u64 ipi[] = {0x50, VP_SET_SPARSE, 1, 0};
    u64 result;

    if (!has_feature("tlbflush") || !has_feature("ipi")) {
        return;
    }
    if (!has_feature("xmm-input")) {
        hypercall_xmm(HV_FLUSH_SPACE, words, 3);
        check_eq(this_cpu()->fault, FAULT_UD, "XMM input without its CPUID bit is #UD");
        return;
    }
    result = hypercall_xmm(HV_FLUSH_SPACE, words, 3);
    check_eq(result, HV_SUCCESS, "XMM: flush space");
    check(xmm_unchanged(), "XMM0-5 are not changed");
    result = hypercall_xmm(HV_FLUSH_LIST | HV_REPS(1), words, 4);
    check_eq(result, HV_REPS(1), "XMM: flush list of 1");
    result = hypercall_xmm(HV_FLUSH_LIST | HV_REPS(11), words, 14);
    check_eq(result, HV_REPS(11), "XMM: flush list of 11, which fills all registers");
    result = hypercall_xmm(HV_FLUSH_LIST | HV_REPS(12), words, 14);
    check(!this_cpu()->fault && BAD_INPUT >> HV_STATUS(result) & 1, "XMM: a list of 12 does not fit");
    result = hypercall_xmm(HV_FLUSH_SPACE_EX | HV_VARHEAD(1), set, 5);
    check_eq(result, HV_SUCCESS, "XMM: flush space ex");
    result = hypercall_xmm(HV_FLUSH_LIST_EX | HV_VARHEAD(1) | HV_REPS(2), set, 7);
    check_eq(result, HV_REPS(2), "XMM: flush list ex");
    result = hypercall_xmm(HV_SEND_IPI_EX | HV_VARHEAD(1), ipi, 4);
    check_eq(result, HV_SUCCESS, "XMM: IPI ex");
    result = hypercall_xmm(HV_SIGNAL_EVENT | HV_REPS(1), words, 2);
    check_eq(HV_STATUS(result), HV_INVALID_HYPERCALL_INPUT, "XMM: bad control word");
}

SUITE(hypercall)
{
    page();
    from_ring_3();
    table();
#ifdef __x86_64__
    registers(HV_FLUSH_SPACE, "a simple call");
    registers(HV_FLUSH_LIST | HV_REPS(2), "a rep call");
#endif
    xmm();
    wrmsr(MSR_HYPERCALL, 0);
    wrmsr(MSR_GUEST_OS_ID, 0);
}
