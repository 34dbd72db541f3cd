/* SPDX-License-Identifier: MIT */
/* All processors at once: SINTs, direct timers and VMBus messages to each; and what INIT leaves (TLFS 7, 11, 12). */

#include "lib/hyperv.h"

#define VEC_DIRECT 0x75
#define SHOTS 30u
#define ME (this_cpu()->index)

static volatile u32 lost[MAX_CPUS], wrong[MAX_CPUS];

/* Each processor: shots to two SINTs and in direct mode, the next when all of the last have arrived. */
static void shoot(void *arg)
{
    struct timer_log *log = my_log();
    bool use_direct = has_feature("stimer-direct");

    (void)arg;
    hv_synic_log();
    for (u32 i = 0; i < SHOTS; i++) {
        u64 expiration = ref_time() + 1000 + 37 * i;

        stimer_shoot(0, 3, expiration);
        stimer_shoot(1, 4, expiration + 11);
        if (use_direct) {
            wrmsr(STIMER_CONFIG(2), 0);
            wrmsr(STIMER_COUNT(2), expiration);
            wrmsr(STIMER_CONFIG(2), STIMER_DIRECT | STIMER_VECTOR(VEC_DIRECT) | STIMER_ENABLE);
        }
        if (!wait_for(log->count == 2 * (i + 1) && (!use_direct || irq_count(VEC_DIRECT) == i + 1))) {
            lost[ME]++;
            break;
        }
        for (u32 n = 2 * i; n < 2 * i + 2; n++) {
            u64 expected = log->entry[n % 64].index ? expiration + 11 : expiration;

            wrong[ME] += log->entry[n % 64].expiration != expected;
        }
    }
    wrong[ME] += log->early;
}

static void all_at_once(void)
{
    on_all(shoot, NULL);
    for (u32 i = 0; i < cpu_count; i++) {
        check(!lost[i] && !wrong[i], "processor %u: %u messages and direct interrupts, with all others", i, 3 * SHOTS);
    }
}

static void vmbus(void)
{
    for (u32 round = 0; round < 3; round++) {
        for (u32 i = 0; i < cpu_count; i++) {
            u32 before = timer_logs[i].others, interrupts = cpu_at(i)->irqs[VEC_SINT(VMBUS_SINT)];
            bool good = vmbus_contact(i) == HV_SUCCESS;

            good = good && wait_for(timer_logs[i].others == before + 1);
            check(good && cpu_at(i)->irqs[VEC_SINT(VMBUS_SINT)] == interrupts + 1,
                  "VMBus's answer comes to processor %u, with one interrupt", i);
        }
    }
}

/* A processor that sleeps hears of a timer of its own. */
static volatile bool slept[MAX_CPUS];

static void sleep_for_timer(void *arg)
{
    struct timer_log *log = my_log();
    u32 before = log->count;

    (void)arg;
    irq_disable();
    stimer_shoot(0, 3, ref_time() + 2 * MS);
    while (log->count == before) {
        irq_wait();
    }
    irq_enable();
    slept[ME] = true;
}

static void sleeping(void)
{
    for (u32 round = 0; round < 10; round++) {
        memset((void *)(uintptr_t)slept, 0, sizeof(slept));
        on_all(sleep_for_timer, NULL);
        for (u32 i = 0; i < cpu_count; i++) {
            if (!slept[i]) {
                check(false, "processor %u is woken by its timer", i);
            }
        }
    }
    check(true, "all processors sleep and are woken by their timers, ten times");
}

/* --- INIT --- */

static u64 vp_msrs[MAX_CPUS][16 + 6];

static void read_vp(void *arg)
{
    u64 *to = vp_msrs[ME];

    (void)arg;
    for (u32 i = 0; i < 16; i++) {
        to[i] = rdmsr(SINT(i));
    }
    to[16] = rdmsr(MSR_SCONTROL);
    to[17] = rdmsr(MSR_SIMP);
    to[18] = rdmsr(MSR_SIEFP);
    to[19] = has_feature("vapic") ? rdmsr(MSR_VP_ASSIST_PAGE) : 0;
    to[20] = rdmsr(MSR_VP_INDEX);
    to[21] = rdmsr(MSR_GUEST_OS_ID) ^ rdmsr(MSR_HYPERCALL);
}

static void prepare_init(void *arg)
{
    (void)arg;
    hv_synic_log();
    if (has_feature("vapic")) {
        wrmsr(MSR_VP_ASSIST_PAGE, (uintptr_t)my_pages()->assist | 1);
    }
    read_vp(NULL);
}

static void works_again(void *arg)
{
    struct timer_log *log = my_log();
    u32 before = log->count;

    stimer_shoot(0, 3, ref_time() + 1 * MS);
    *(volatile bool *)arg = wait_for(log->count == before + 1);
}

static void after_init(void)
{
    u32 target = cpu_count - 1;
    static u64 before[ARRAY_SIZE(vp_msrs[0])];
    bool works = false;

    on_cpu(target, prepare_init, NULL);
    memcpy(before, vp_msrs[target], sizeof(before));
    cpu_init(target);
    check(true, "processor %u starts again after INIT", target);
    on_cpu(target, read_vp, NULL);
    check_eq(vp_msrs[target][20], target, "its VP index is the same");
    check_eq(vp_msrs[target][21], before[21], "what the partition has once is kept");
    /* "VP creation and reset" clear these; INIT is neither: KVM keeps them, and so does QEMU. */
    for (u32 i = 0; i < 20; i++) {
        if (vp_msrs[target][i] != before[i]) {
            check_eq(vp_msrs[target][i], before[i], "its Hyper-V register %u is kept over INIT", i);
        }
    }
    on_cpu(target, works_again, &works);
    check(works, "its timers and SINTs work after INIT");
}

SUITE(smp)
{
    if (!has_feature("synic") || !has_feature("stimer")) {
        skip("needs hv-synic and hv-stimer", "all processors");
        return;
    }
    hv_start();
    irq_handler(VEC_DIRECT, NULL);
    all_at_once();
    if (option("vmbus")) {
        vmbus();
    }
    sleeping();
    if (cpu_count > 1) {
        after_init();
    }
    for (u32 i = 0; i < cpu_count; i++) {
        on_cpu(i, (void (*)(void *))hv_synic_stop, NULL);
    }
    hv_stop();
}
