/* SPDX-License-Identifier: MIT */
/*
 * The framework of the bare-metal test programs: processors, interrupts, faults, APIC, output.
 *
 * A program is a set of suites (SUITE below), picked by name with the word run=A,B,... of the kernel command line.
 * A check prints one line, as TAP does: "ok 7 - msr: ..." or "not ok 7 - msr: ...: got ..., expected ...".
 * The last line is "1..N" if the program came to its end. The exit status of QEMU is 33 if all checks passed.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define PAGE_SIZE 4096u
#define MAX_CPUS 64u
#define CPU_BLOCK 16384u /* lib/boot.S */
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#define PAGE_ALIGNED __attribute__((aligned(4096)))

/* Vectors of the framework; tests use others above 0x40. */
#define VEC_USER 0x80 /* int $0x80: ring 3 has ended */
#define VEC_WAKE 0xf0
#define VEC_SPURIOUS 0xff

#define FAULT_NONE 0u
#define FAULT_UD 6u
#define FAULT_GP 13u
#define FAULT_PF 14u

/* What lib/boot.S pushes; the processor has pushed from ip on. */
struct regs {
#ifdef __x86_64__
    u64 r15, r14, r13, r12, r11, r10, r9, r8, di, si, bp, bx, dx, cx, ax;
    u64 vector, error, ip, cs, flags, sp, ss;
#else
    u32 di, si, bp, bx, dx, cx, ax;
    u32 vector, error, ip, cs, flags;
#endif
};

/* One processor; the rest of its 16 KiB block is its stack. */
struct cpu {
    /* known to lib/boot.S: where to go on after a fault in a called page, with which stack, and that page */
    uintptr_t recover_ip, recover_sp, call_target;
    u32 index; /* = APIC id, = VP index */
    volatile u32 alive;
    volatile u32 fault; /* vector of the last fault that was recovered from, or FAULT_NONE */
    volatile uintptr_t fault_addr;
    void (*volatile fn)(void *arg);
    void *volatile arg;
    volatile u32 wakes;
    volatile u32 irqs[256];
    u8 tss[104] __attribute__((aligned(16)));
    u64 gdt[10];
};

union cpu_block {
    struct cpu cpu;
    u8 stack[CPU_BLOCK];
};

extern union cpu_block cpu_blocks[MAX_CPUS];
extern u32 cpu_count; /* those that run; set by the word cpus=N */

static inline struct cpu *this_cpu(void)
{
    uintptr_t sp;

    __asm__ volatile("mov %%" 
#ifdef __x86_64__
                     "rsp"
#else
                     "esp"
#endif
                     ", %0" : "=r"(sp));
    return (struct cpu *)((sp - 1) & ~(uintptr_t)(CPU_BLOCK - 1));
}

static inline struct cpu *cpu_at(u32 index)
{
    return &cpu_blocks[index].cpu;
}

/* --- instructions --- */

#define barrier() __asm__ volatile("" ::: "memory")
#define mfence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

static inline void pause(void)
{
    __asm__ volatile("pause" ::: "memory");
}

static inline void irq_enable(void)
{
    __asm__ volatile("sti" ::: "memory");
}

static inline void irq_disable(void)
{
    __asm__ volatile("cli" ::: "memory");
}

/* Sleep until an interrupt has been handled; no interrupt is lost between the two instructions. */
static inline void irq_wait(void)
{
    __asm__ volatile("sti; hlt; cli" ::: "memory");
}

static inline void outb(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline void outl(u16 port, u32 value)
{
    __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port) : "memory");
}

static inline u64 rdtsc(void)
{
    u32 low, high;

    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (u64)high << 32 | low;
}

struct cpuid {
    u32 a, b, c, d;
};

static inline struct cpuid cpuid(u32 leaf, u32 subleaf)
{
    struct cpuid r;

    __asm__ volatile("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(subleaf));
    return r;
}

/* An instruction that may fault; then execution goes on at the label 3 behind it. */
#define EXTABLE(from, to) ".pushsection .extable, \"a\"\n.long " #from ", " #to "\n.popsection\n"

/* Returns the vector of the fault, or FAULT_NONE. */
static inline u32 rdmsr_safe(u32 msr, u64 *value)
{
    struct cpu *self = this_cpu();
    u32 low = 0, high = 0;

    self->fault = FAULT_NONE;
    __asm__ volatile("1: rdmsr\n2:\n" EXTABLE(1b, 2b) : "+a"(low), "+d"(high) : "c"(msr) : "memory");
    *value = (u64)high << 32 | low;
    return self->fault;
}

static inline u32 wrmsr_safe(u32 msr, u64 value)
{
    struct cpu *self = this_cpu();

    self->fault = FAULT_NONE;
    __asm__ volatile("1: wrmsr\n2:\n" EXTABLE(1b, 2b) ::"c"(msr), "a"((u32)value), "d"((u32)(value >> 32))
                     : "memory");
    return self->fault;
}

/* A fault here ends the program. */
static inline u64 rdmsr(u32 msr)
{
    u32 low, high;

    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
    return (u64)high << 32 | low;
}

static inline void wrmsr(u32 msr, u64 value)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

/* --- output (lib/print.c) --- */

void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
void vformat(char *buffer, size_t size, const char *format, va_list args);

extern u32 checks_failed;

/* One check; the name says what is expected. Returns whether it passed. */
bool check(bool passed, const char *name, ...) __attribute__((format(printf, 2, 3)));
bool check_eq(u64 got, u64 expected, const char *name, ...) __attribute__((format(printf, 3, 4)));
/* A remark in the output, e.g. a count that a person wants to see. */
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A check that does not apply in this configuration; TAP's "# SKIP". */
void skip(const char *reason, const char *name);
/* The program cannot go on: prints "Bail out!" and ends QEMU with status 37. */
void bail_out(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void finish(void) __attribute__((noreturn));

struct suite {
    const char *name;
    void (*run)(void);
};

#define SUITE(ident)                                                                                \
    static void ident##_suite(void);                                                                \
    static const struct suite ident##_entry                                                         \
        __attribute__((section(".suites"), used, aligned(sizeof(void *)))) = {#ident, ident##_suite};               \
    static void ident##_suite(void)

/* --- options (lib/main.c) --- */

bool option(const char *word);                      /* is this word on the command line? */
u64 option_number(const char *name, u64 otherwise); /* the N of name=N */
bool option_lists(const char *name, const char *item); /* does name=A,B,... have this item? */

/* --- processors (lib/smp.c) --- */

void start_processors(void);
/* Run fn on a processor and wait for its end. */
void on_cpu(u32 index, void (*fn)(void *), void *arg);
/* Run fn on all at once and wait for all. */
void on_all(void (*fn)(void *), void *arg);
/* Start fn on another processor; wait with cpu_join(). */
void cpu_start(u32 index, void (*fn)(void *), void *arg);
void cpu_join(u32 index);
/* Send INIT to a processor and start it anew; what its MSRs are then is up to the test. */
void cpu_init(u32 index);

struct spinlock {
    u32 held;
};
void spin_lock(struct spinlock *lock);
void spin_unlock(struct spinlock *lock);

struct barrier {
    volatile u32 arrived, generation;
};
void barrier_wait(struct barrier *b, u32 parties);

/* --- interrupts (lib/trap.c) --- */

void cpu_tables(struct cpu *self); /* GDT, TSS, IDT */
/* Called with interrupts off. The framework writes EOI afterwards, unless the vector is quiet. */
void irq_handler(u8 vector, void (*fn)(u8 vector));
void irq_no_eoi(u8 vector, bool quiet);
void irq_reset(void); /* no handlers, all EOI as usual, counts of all processors 0 */
u32 irq_count(u8 vector); /* on this processor */

/* --- local APIC (lib/apic.c) --- */

enum apic_access { APIC_XAPIC, APIC_X2APIC };
extern bool apic_x2; /* the word x2apic */

#define APIC_ID 0x20
#define APIC_TPR 0x80
#define APIC_EOI 0xb0
#define APIC_SPURIOUS 0xf0
#define APIC_ISR 0x100
#define APIC_IRR 0x200
#define APIC_ICR 0x300
#define APIC_LVT_TIMER 0x320
#define APIC_TIMER_INITIAL 0x380
#define APIC_TIMER_CURRENT 0x390
#define APIC_TIMER_DIVIDE 0x3e0

void apic_enable(void); /* on this processor */
u32 apic_read(u32 reg);
void apic_write(u32 reg, u32 value);
void apic_eoi(void);
void apic_ipi(u32 index, u32 icr_low);
bool apic_bit(u32 reg, u8 vector); /* of APIC_ISR, APIC_IRR */

/* --- memory (lib/paging.c) --- */

#define WINDOW 0x40000000u /* virtual; small pages, none mapped at first */
#define WINDOW_PAGES 512u
#define PTE_PRESENT 1u
#define PTE_WRITE 2u

/* Changes the page table entry, and no TLB. pa 0: not present. */
void window_map(u32 page, uintptr_t pa);
static inline volatile u32 *window(u32 page)
{
    return (volatile u32 *)(uintptr_t)(WINDOW + page * PAGE_SIZE);
}
static inline void invlpg(const volatile void *va)
{
    __asm__ volatile("invlpg (%0)" ::"r"(va) : "memory");
}

/*
 * RAM that no reset clears: not part of the program's image, unlike its variables, which are as new after each
 * reset. Here a program remembers that it has asked for the reset.
 */
#define SURVIVES_RESET ((volatile u32 *)(uintptr_t)0x3000000)

/*
 * A point at which the harness may save the machine and load it into another QEMU. With the word checkpoints the
 * machine stops here by itself (pvpanic and -action panic=pause), so that what is saved is this state, and not one
 * some milliseconds later.
 */
void checkpoint(const char *name);

void *memset(void *to, int c, size_t n);
void *memcpy(void *to, const void *from, size_t n);
int memcmp(const void *a, const void *b, size_t n);
int strcmp(const char *a, const char *b);
size_t strlen(const char *s);

#endif
