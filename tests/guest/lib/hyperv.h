/* SPDX-License-Identifier: MIT */
/*
 * The Hyper-V interface as the TLFS ("Hypervisor Top-Level Functional Specification", 6.0b) has it, and helpers.
 *
 * What is expected of a machine depends on its hv-* flags: the harness repeats them on the command line (hv=relaxed,
 * time,...), and has_feature() asks for one.
 */
#ifndef HYPERV_H
#define HYPERV_H

#include "guest.h"

#define MSR_GUEST_OS_ID 0x40000000u
#define MSR_HYPERCALL 0x40000001u
#define MSR_VP_INDEX 0x40000002u
#define MSR_RESET 0x40000003u
#define MSR_VP_RUNTIME 0x40000010u
#define MSR_TIME_REF_COUNT 0x40000020u
#define MSR_REFERENCE_TSC 0x40000021u
#define MSR_TSC_FREQUENCY 0x40000022u
#define MSR_APIC_FREQUENCY 0x40000023u
#define MSR_EOI 0x40000070u
#define MSR_ICR 0x40000071u
#define MSR_TPR 0x40000072u
#define MSR_VP_ASSIST_PAGE 0x40000073u
#define MSR_SCONTROL 0x40000080u
#define MSR_SVERSION 0x40000081u
#define MSR_SIEFP 0x40000082u
#define MSR_SIMP 0x40000083u
#define MSR_EOM 0x40000084u
#define MSR_SINT0 0x40000090u
#define MSR_STIMER0_CONFIG 0x400000b0u
#define MSR_STIMER0_COUNT 0x400000b1u
#define MSR_GUEST_IDLE 0x400000f0u
#define MSR_CRASH_P0 0x40000100u
#define MSR_CRASH_CTL 0x40000105u
#define MSR_REENLIGHTENMENT_CONTROL 0x40000106u
#define MSR_TSC_EMULATION_CONTROL 0x40000107u
#define MSR_TSC_EMULATION_STATUS 0x40000108u

#define STIMER_CONFIG(n) (MSR_STIMER0_CONFIG + 2 * (n))
#define STIMER_COUNT(n) (MSR_STIMER0_COUNT + 2 * (n))
#define SINT(n) (MSR_SINT0 + (n))

#define SINT_MASKED (1ull << 16)
#define SINT_AUTO_EOI (1ull << 17)
#define SINT_POLLING (1ull << 18)

#define STIMER_ENABLE (1ull << 0)
#define STIMER_PERIODIC (1ull << 1)
#define STIMER_LAZY (1ull << 2)
#define STIMER_AUTO_ENABLE (1ull << 3)
#define STIMER_VECTOR(v) ((u64)(v) << 4)
#define STIMER_DIRECT (1ull << 12)
#define STIMER_SINT(n) ((u64)(n) << 16)

/* Hypercall codes and the control word (TLFS 3.8, 18) */
#define HV_FLUSH_SPACE 0x0002u
#define HV_FLUSH_LIST 0x0003u
#define HV_LONG_SPIN_WAIT 0x0008u
#define HV_SEND_IPI 0x000bu
#define HV_FLUSH_SPACE_EX 0x0013u
#define HV_FLUSH_LIST_EX 0x0014u
#define HV_SEND_IPI_EX 0x0015u
#define HV_POST_MESSAGE 0x005cu
#define HV_SIGNAL_EVENT 0x005du
#define HV_EXT_QUERY_CAPABILITIES 0x8001u
#define HV_FAST (1ull << 16)
#define HV_VARHEAD(qwords) ((u64)(qwords) << 17)
#define HV_REPS(n) ((u64)(n) << 32)
#define HV_REP_START(n) ((u64)(n) << 48)

#define HV_SUCCESS 0u
#define HV_INVALID_HYPERCALL_CODE 2u
#define HV_INVALID_HYPERCALL_INPUT 3u
#define HV_INVALID_ALIGNMENT 4u
#define HV_INVALID_PARAMETER 5u
#define HV_ACCESS_DENIED 6u
#define HV_INSUFFICIENT_MEMORY 11u
#define HV_INVALID_PORT_ID 17u
#define HV_INVALID_CONNECTION_ID 18u
#define HV_INSUFFICIENT_BUFFERS 19u

#define HV_STATUS(result) ((u32)((result) & 0xffff))
#define HV_REPS_DONE(result) ((u32)((result) >> 32 & 0xfff))

/* The bits of HvFlushVirtualAddressSpace (TLFS 12.4) */
#define FLUSH_ALL_PROCESSORS 1ull
#define FLUSH_ALL_SPACES 2ull
#define FLUSH_NON_GLOBAL_ONLY 4ull

#define VP_SET_SPARSE 0ull
#define VP_SET_ALL 1ull

#define MSG_TIMER_EXPIRED 0x80000010u
#define MSG_FLAG_PENDING 1u

struct hv_message {
    u32 type;
    u8 size, flags;
    u16 reserved;
    u64 sender;
    union {
        struct {
            u32 index, reserved;
            u64 expiration, delivery;
        } timer;
        u32 word[60];
    };
} __attribute__((packed, aligned(8)));

/* The overlay pages of one processor, where this program puts them. */
struct hv_pages {
    u8 simp[PAGE_SIZE], siefp[PAGE_SIZE], assist[PAGE_SIZE], input[PAGE_SIZE], output[PAGE_SIZE];
} PAGE_ALIGNED;
extern struct hv_pages hv_pages[MAX_CPUS];
extern u8 hypercall_page[PAGE_SIZE], tsc_page[PAGE_SIZE];

static inline struct hv_pages *my_pages(void)
{
    return &hv_pages[this_cpu()->index];
}

static inline volatile struct hv_message *slot_of(u32 cpu, u32 sint)
{
    return (volatile struct hv_message *)(hv_pages[cpu].simp + 256 * sint);
}

static inline volatile struct hv_message *my_slot(u32 sint)
{
    return slot_of(this_cpu()->index, sint);
}

bool has_feature(const char *name);

/* The registers of a hypercall, in the names of the 64-bit ABI: RCX, RDX, R8 (or EDX:EAX, EBX:ECX, EDI:ESI). */
struct hv_regs {
    u64 control, input, output;
};

/* By the hypercall page; the fault, if any, is in this_cpu()->fault. */
u64 hypercall_at(void *page, u64 control, u64 input, u64 output);
static inline u64 hypercall(u64 control, u64 input, u64 output)
{
    return hypercall_at(hypercall_page, control, input, output);
}
/* With the input page of this processor; words are its first u64s. */
u64 hypercall_with(u64 control, const u64 *words, u32 count);

/* Fast, with more than two words: the rest goes to XMM0-5 (TLFS 3.7.2); count is at most 14. */
u64 hypercall_xmm(u64 control, const u64 *words, u32 count);
/* Whether XMM0-5 still have what hypercall_xmm() put there. */
bool xmm_unchanged(void);

/*
 * VMBus's INITIATE_CONTACT, posted to connection 1: the host answers with a message (type 1) whose first word is 15,
 * VERSION_RESPONSE, to SINT 2 of the given processor. The simplest way to make a host send a message.
 */
u64 vmbus_contact(u32 vp);
#define VMBUS_SINT 2u
#define VMBUS_VERSION_RESPONSE 15u

#define OS_ID 0x8100000000000001ull /* open source, TLFS 2.6 */

/* Tell an OS id and enable the hypercall page. */
void hv_start(void);
void hv_stop(void);
/* On this processor: message and event page, SynIC enabled, all SINTs masked, no timer. */
void hv_synic_start(void);
void hv_synic_stop(void);

/*
 * The timer messages that a processor got: log_messages() is a handler for the vectors VEC_SINT(n). It takes the
 * message out of the slot and asks for the next one if there is one (TLFS 11.9.2, 11.8.6).
 */
#define VEC_SINT(n) (0x60 + (n))
struct timer_log {
    volatile u32 count; /* of timer messages */
    volatile u32 others;
    volatile u32 early; /* before the time that the message itself says: never */
    struct {
        u32 index, sint;
        u64 expiration, delivery;
    } entry[64]; /* the last ones; number n is in n % 64 */
};
extern struct timer_log timer_logs[MAX_CPUS];
void log_messages(u8 vector);
static inline struct timer_log *my_log(void)
{
    return &timer_logs[this_cpu()->index];
}
/* SynIC on, all SINTs from 1 on unmasked with VEC_SINT() and logged; the log is empty. */
void hv_synic_log(void);
/* One timer, one shot, to a SINT. */
void stimer_shoot(u32 timer, u32 sint, u64 expiration);

/* Reference time, 100 ns. */
static inline u64 ref_time(void)
{
    return rdmsr(MSR_TIME_REF_COUNT);
}
#define MS 10000ull

/*
 * Wait until the condition holds, at most the given reference time; the value is the condition's. The bound is so
 * large that only something lost reaches it, and not a slow host.
 */
#define PATIENCE (5000 * MS)
#define wait_for(condition)                                                                                          \
    ({                                                                                                               \
        u64 end_ = ref_time() + PATIENCE;                                                                            \
        while (!(condition) && ref_time() < end_) {                                                                  \
            pause();                                                                                                 \
        }                                                                                                            \
        (bool)(condition);                                                                                           \
    })
/* Let this much time pass. */
void delay(u64 time);

#endif
