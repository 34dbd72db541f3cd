/* SPDX-License-Identifier: MIT */
/* HvSendSyntheticClusterIpi and its Ex form (TLFS 10.4): each target gets one interrupt, nobody else gets one. */

#include "lib/hyperv.h"

#define VEC_IPI 0x51

static u32 received[MAX_CPUS];

static void snapshot(void)
{
    for (u32 i = 0; i < cpu_count; i++) {
        received[i] = cpu_at(i)->irqs[VEC_IPI];
    }
}

static bool as_expected(u64 targets)
{
    for (u32 i = 0; i < cpu_count; i++) {
        if (cpu_at(i)->irqs[VEC_IPI] != received[i] + (targets >> i & 1)) {
            return false;
        }
    }
    return true;
}

/* After a call: all targets are reached, and then nobody else has been either. */
static void expect(u64 result, u64 targets, const char *name)
{
    bool good;

    good = wait_for(as_expected(targets));
    delay(MS / 10);
    good = good && as_expected(targets);
    check(good && result == HV_SUCCESS, "%s to 0x%llx: status %u", name, (unsigned long long)targets,
          HV_STATUS(result));
}

static void plain(u64 mask, const char *name)
{
    u64 words[] = {VEC_IPI, mask};
    u64 all = cpu_count == 64 ? ~0ull : (1ull << cpu_count) - 1;

    snapshot();
    expect(hypercall(HV_SEND_IPI | HV_FAST, VEC_IPI, mask), mask & all, name);
    snapshot();
    expect(hypercall_with(HV_SEND_IPI, words, 2), mask & all, name);
}

static void ex(u64 format, u64 banks, u64 mask, u64 targets, const char *name)
{
    u64 words[] = {VEC_IPI, format, banks, mask, 0};
    u32 header = (u32)(banks & 1) + (u32)(banks >> 1 & 1);

    snapshot();
    expect(hypercall_with(HV_SEND_IPI_EX | HV_VARHEAD(header), words, 3 + header), targets, name);
    if (has_feature("xmm-input")) {
        snapshot();
        expect(hypercall_xmm(HV_SEND_IPI_EX | HV_VARHEAD(header), words, 3 + header), targets, name);
    }
}

static void from_each(void *arg)
{
    (void)arg;
    plain(1, "IPI from each processor");
}

SUITE(ipi)
{
    u64 all = cpu_count == 64 ? ~0ull : (1ull << cpu_count) - 1;

    if (!has_feature("ipi") || !has_feature("time")) {
        skip("needs hv-ipi and hv-time", "IPI hypercalls");
        return;
    }
    hv_start();
    for (u32 i = 0; i < cpu_count; i++) {
        plain(1ull << i, "IPI");
        ex(VP_SET_SPARSE, 1, 1ull << i, 1ull << i, "IPI ex");
    }
    plain(all, "IPI to all");
    plain(all & 0x5555555555555555ull, "IPI to every other");
    plain(all | 1ull << 63, "IPI to all and to one that is not there");
    ex(VP_SET_SPARSE, 1, all, all, "IPI ex to all");
    ex(VP_SET_SPARSE, 1, all & 0xaaaaaaaaaaaaaaaaull, all & 0xaaaaaaaaaaaaaaaaull, "IPI ex to every other");
    ex(VP_SET_ALL, 0, 0, all, "IPI ex, format all");
    ex(VP_SET_SPARSE, 3, all, all, "IPI ex, and an empty second bank");
    ex(VP_SET_SPARSE, 2, all, 0, "IPI ex, second bank only");
    ex(VP_SET_SPARSE, 0, 0, 0, "IPI ex, no bank");
    for (u32 i = 1; i < cpu_count; i++) {
        on_cpu(i, from_each, NULL);
    }
    hv_stop();
}
