/* SPDX-License-Identifier: MIT */
/* A window of small pages beside the 1:1 mapping of lib/boot.S, for tests of TLB flushes. */

#include "guest.h"

extern uintptr_t page_dir[];
static volatile uintptr_t window_table[PAGE_SIZE / sizeof(uintptr_t)] PAGE_ALIGNED;

#ifdef __x86_64__
#define DIR_SHIFT 21
#else
#define DIR_SHIFT 22
#endif

void window_map(u32 page, uintptr_t pa)
{
    volatile uintptr_t *entry = &page_dir[WINDOW >> DIR_SHIFT];
    uintptr_t table = (uintptr_t)window_table | PTE_PRESENT | PTE_WRITE;

    if (*entry != table) {
        /* Before any processor has used it: nothing of the large page is in a TLB. */
        *entry = table;
    }
    window_table[page] = pa ? pa | PTE_PRESENT | PTE_WRITE : 0;
    mfence();
}
