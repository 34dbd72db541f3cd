/* SPDX-License-Identifier: MIT */
/*
 * The TLB flush hypercalls (TLFS 12.4): a page table entry is changed without INVLPG, one processor makes the call,
 * and each processor that it names has to see the new page from then on.
 *
 * A processor that is not named may see the old one or the new one. With the word masks (a host that honours the
 * masks, and has a TLB that keeps what it need not drop: TCG) at least some have to see the old one; so it is also
 * known that there was something to flush.
 */

#include "lib/hyperv.h"

#define PAGES 12u /* of the window */
#define WATCHED_ROUNDS 60u
#define OLD 0x0101u
#define NEW 0x0202u

static u32 old_frame[PAGE_SIZE / 4] PAGE_ALIGNED, new_frame[PAGE_SIZE / 4] PAGE_ALIGNED;
static volatile u32 seen[MAX_CPUS][PAGES];

static void look(void *arg)
{
    (void)arg;
    for (u32 page = 0; page < PAGES; page++) {
        seen[this_cpu()->index][page] = *window(page);
    }
}

static void drop(void *arg)
{
    (void)arg;
    for (u32 page = 0; page < PAGES; page++) {
        invlpg(window(page));
    }
}

static u64 result_of(u32 code, u32 header, const u64 *words, u32 count, u32 reps, bool in_xmm)
{
    u64 control = code | HV_VARHEAD(header) | HV_REPS(reps);

    return in_xmm ? hypercall_xmm(control, words, count) : hypercall_with(control, words, count);
}

static u32 kept, kept_of;

/* The processors in "targets" have to see the pages in "pages" anew. */
static void round(const char *name, u32 code, u32 header, const u64 *words, u32 count, u32 reps, bool in_xmm,
                  u64 targets, u32 pages)
{
    u32 stale = 0, wrong = 0;
    u64 result;

    for (u32 page = 0; page < PAGES; page++) {
        window_map(page, (uintptr_t)old_frame);
    }
    on_all(drop, NULL);
    on_all(look, NULL);
    for (u32 page = 0; page < PAGES; page++) {
        window_map(page, (uintptr_t)new_frame);
    }
    result = result_of(code, header, words, count, reps, in_xmm);
    on_all(look, NULL);
    for (u32 cpu = 0; cpu < cpu_count; cpu++) {
        for (u32 page = 0; page < PAGES; page++) {
            bool must = targets >> cpu & 1 && pages >> page & 1;

            if (seen[cpu][page] != OLD && seen[cpu][page] != NEW) {
                wrong++;
            } else if (must) {
                stale += seen[cpu][page] == OLD;
            } else {
                kept += seen[cpu][page] == OLD;
                kept_of++;
            }
        }
    }
    check_eq(result, HV_REPS(reps), "%s%s: result", name, in_xmm ? " in XMM" : "");
    check_eq(stale + wrong, 0, "%s%s: no old page is seen", name, in_xmm ? " in XMM" : "");
}

#define GVA(page, more) ((u64)WINDOW + (page) * PAGE_SIZE + (more))

static void rounds(bool in_xmm)
{
    u64 all = cpu_count == 64 ? ~0ull : (1ull << cpu_count) - 1;
    u64 odd = all & 0xaaaaaaaaaaaaaaaaull, last = 1ull << (cpu_count - 1);
    u32 every = (1u << PAGES) - 1;
    u64 cr3;
    uintptr_t cr3_value;

    __asm__ volatile("mov %%cr3, %0" : "=r"(cr3_value));
    cr3 = cr3_value;

#define ROUND(name, code, header, reps, targets, pages, ...)                                                         \
    do {                                                                                                             \
        const u64 words_[] = {__VA_ARGS__};                                                                          \
        round(name, code, header, words_, ARRAY_SIZE(words_), reps, in_xmm, targets, pages);                         \
    } while (0)

    ROUND("space, all processors", HV_FLUSH_SPACE, 0, 0, all, every, cr3, FLUSH_ALL_PROCESSORS, 0);
    ROUND("all spaces, all processors", HV_FLUSH_SPACE, 0, 0, all, every, 0,
          FLUSH_ALL_PROCESSORS | FLUSH_ALL_SPACES, 0);
    ROUND("space, a mask of all", HV_FLUSH_SPACE, 0, 0, all, every, cr3, 0, all);
    ROUND("space, the last processor", HV_FLUSH_SPACE, 0, 0, last, every, cr3, 0, last);
    ROUND("space, itself", HV_FLUSH_SPACE, 0, 0, 1, every, cr3, 0, 1);
    if (odd) {
        ROUND("space, every other", HV_FLUSH_SPACE, 0, 0, odd, every, cr3, 0, odd);
    }
    ROUND("space, non-global only", HV_FLUSH_SPACE, 0, 0, all, every, cr3, FLUSH_NON_GLOBAL_ONLY, all);
    ROUND("list, one page", HV_FLUSH_LIST, 0, 1, all, 1u << 3, cr3, 0, all, GVA(3, 0));
    ROUND("list, a range of four", HV_FLUSH_LIST, 0, 1, all, 0xfu << 2, cr3, 0, all, GVA(2, 3));
    ROUND("list, three ranges", HV_FLUSH_LIST, 0, 3, last, 1u << 0 | 3u << 4 | 1u << 9, cr3, 0, last, GVA(0, 0),
          GVA(4, 1), GVA(9, 0));
    ROUND("list, eleven pages one by one", HV_FLUSH_LIST, 0, 11, all, every & ~1u, cr3, 0, all, GVA(1, 0), GVA(2, 0),
          GVA(3, 0), GVA(4, 0), GVA(5, 0), GVA(6, 0), GVA(7, 0), GVA(8, 0), GVA(9, 0), GVA(10, 0), GVA(11, 0));
    ROUND("list, all processors and a mask of none", HV_FLUSH_LIST, 0, 1, all, every, cr3, FLUSH_ALL_PROCESSORS, 0,
          GVA(0, PAGES - 1));
    ROUND("space ex, all", HV_FLUSH_SPACE_EX, 0, 0, all, every, cr3, 0, VP_SET_ALL, 0);
    ROUND("space ex, one bank", HV_FLUSH_SPACE_EX, 1, 0, all, every, cr3, 0, VP_SET_SPARSE, 1, all);
    ROUND("space ex, the last processor", HV_FLUSH_SPACE_EX, 1, 0, last, every, cr3, 0, VP_SET_SPARSE, 1, last);
    ROUND("space ex, two banks", HV_FLUSH_SPACE_EX, 2, 0, last, every, cr3, 0, VP_SET_SPARSE, 3, last, 0);
    ROUND("list ex, one bank, two ranges", HV_FLUSH_LIST_EX, 1, 2, all, 3u << 1 | 1u << 7, cr3, 0, VP_SET_SPARSE, 1,
          all, GVA(1, 1), GVA(7, 0));
    ROUND("list ex, all", HV_FLUSH_LIST_EX, 0, 1, all, every, cr3, 0, VP_SET_ALL, 0, GVA(0, PAGES - 1));
    if (!in_xmm) {
        /* More ranges than a host may care to look at one by one */
        static u64 words[3 + 40];

        words[0] = cr3;
        words[1] = 0;
        words[2] = all;
        for (u32 i = 0; i < 40; i++) {
            words[3 + i] = GVA(i % PAGES, 0);
        }
        round("list of 40", HV_FLUSH_LIST, 0, words, ARRAY_SIZE(words), 40, false, all, every);
    }
}

/* --- while the others look all the time, and while all flush each other --- */

#define BETWEEN 0x80000000u
static volatile u32 stage; /* odd: the new page, and everybody has been told to flush; BETWEEN: not yet */
static volatile bool over;
static volatile u32 violations, looks;

static void watcher(void *arg)
{
    (void)arg;
    while (!over) {
        u32 before = stage;
        u32 value = *window(0);

        mfence();
        if (stage == before && before != BETWEEN && value != (before & 1 ? NEW : OLD)) {
            violations++;
        }
        looks++;
        pause();
    }
}

static void watched(void)
{
    u64 words[] = {0, FLUSH_ALL_PROCESSORS | FLUSH_ALL_SPACES, 0, GVA(0, 0)};

    over = false;
    stage = 0;
    window_map(0, (uintptr_t)old_frame);
    hypercall_with(HV_FLUSH_SPACE, words, 3);
    for (u32 i = 1; i < cpu_count; i++) {
        cpu_start(i, watcher, NULL);
    }
    for (u32 i = 0; i < WATCHED_ROUNDS; i++) {
        __atomic_store_n(&stage, BETWEEN, __ATOMIC_SEQ_CST);
        window_map(0, i & 1 ? (uintptr_t)old_frame : (uintptr_t)new_frame);
        if (i & 2) {
            hypercall_with(HV_FLUSH_SPACE, words, 3);
        } else {
            hypercall_with(HV_FLUSH_LIST | HV_REPS(1), words, 4);
        }
        __atomic_store_n(&stage, 1 + i, __ATOMIC_SEQ_CST);
        for (u32 n = 0; n < 50; n++) {
            pause();
        }
    }
    over = true;
    for (u32 i = 1; i < cpu_count; i++) {
        cpu_join(i);
    }
    note("%u looks", looks);
    check_eq(violations, 0, "no processor sees the old page once the hypercall is over");
}

static void flush_others(void *arg)
{
    u64 words[] = {0, FLUSH_ALL_SPACES | FLUSH_ALL_PROCESSORS, 0, GVA(0, 1)};
    volatile u32 *bad = arg;

    for (u32 i = 0; i < 50; i++) {
        u64 result = i & 1 ? hypercall_with(HV_FLUSH_SPACE, words, 3)
                           : hypercall_with(HV_FLUSH_LIST | HV_REPS(1), words, 4);

        if (HV_STATUS(result)) {
            (*bad)++;
        }
    }
}

SUITE(flush)
{
    u32 bad = 0;

    if (!has_feature("tlbflush")) {
        skip("no hv-tlbflush", "flush hypercalls");
        return;
    }
    old_frame[0] = OLD;
    new_frame[0] = NEW;
    hv_start();
    rounds(false);
    note("of %u pages that need not be flushed, %u were kept", kept_of, kept);
    if (option("masks")) {
        check(kept > 0, "what is not to be flushed is kept");
    }
    if (has_feature("xmm-input")) {
        rounds(true);
    }
    if (cpu_count > 1) {
        watched();
    }
    on_all(flush_others, &bad);
    check_eq(bad, 0, "all processors flush each other at once");
    hv_stop();
}
