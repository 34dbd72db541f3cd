/* SPDX-License-Identifier: MIT */
/* Descriptor tables of each processor, interrupts, and recovery from faults that a test provokes. */

#include "guest.h"

#ifdef __x86_64__
#define KERNEL_CS 0x18
#else
#define KERNEL_CS 0x08
#endif

union cpu_block cpu_blocks[MAX_CPUS] __attribute__((aligned(16384)));

struct gate {
    u16 offset_low, selector;
    u8 ist, type;
    u16 offset_mid;
#ifdef __x86_64__
    u32 offset_high, reserved;
#endif
} __attribute__((packed));

static struct gate idt[256] __attribute__((aligned(16)));
static void (*volatile handlers[256])(u8);
static volatile bool quiet_vectors[256];

extern const u8 trap_stubs[];
extern const struct {
    u32 from, to;
} extable_start[], extable_end[];

static void fill_idt(void)
{
    for (u32 i = 0; i < 256; i++) {
        uintptr_t stub = (uintptr_t)trap_stubs + 16 * i;

        idt[i] = (struct gate){
            .offset_low = (u16)stub,
            .selector = KERNEL_CS,
            .type = i == VEC_USER ? 0xee : 0x8e, /* interrupt gate, DPL 3 or 0 */
            .offset_mid = (u16)(stub >> 16),
        };
    }
}

void cpu_tables(struct cpu *self)
{
    uintptr_t tss = (uintptr_t)self->tss;
    /* Interrupts from ring 3 come in below what the caller of ring 3 has on the same stack. */
    uintptr_t stack = (uintptr_t)self + CPU_BLOCK / 2;
    struct {
        u16 limit;
        uintptr_t base;
    } __attribute__((packed)) gdtr = {sizeof(self->gdt) - 1, (uintptr_t)self->gdt},
                              idtr = {sizeof(idt) - 1, (uintptr_t)idt};

    if (self->index == 0) {
        fill_idt();
    }
    memset(self->tss, 0, sizeof(self->tss));
    memcpy(self->tss + 4, &stack, sizeof(stack)); /* ESP0 or RSP0 */
#ifndef __x86_64__
    self->tss[8] = 0x10; /* SS0 */
#endif
    self->gdt[0] = 0;
    self->gdt[1] = 0x00cf9b000000ffff; /* 0x08: 32-bit code */
    self->gdt[2] = 0x00cf93000000ffff; /* 0x10: data */
    self->gdt[3] = 0x00af9b000000ffff; /* 0x18: 64-bit code */
    self->gdt[4] = 0x00cffb000000ffff; /* 0x20: 32-bit code, ring 3 */
    self->gdt[5] = 0x00cff3000000ffff; /* 0x28: data, ring 3 */
    self->gdt[6] = 0x00affb000000ffff; /* 0x30: 64-bit code, ring 3 */
    self->gdt[7] = 0;
    self->gdt[8] = 103 | (u64)(tss & 0xffffff) << 16 | 0x89ull << 40 | (u64)(tss >> 24 & 0xff) << 56;
    self->gdt[9] = 0;
    __asm__ volatile("lgdt %0; lidt %1" ::"m"(gdtr), "m"(idtr));
#ifdef __x86_64__
    __asm__ volatile("pushq %0; pushq $1f; lretq; 1:" ::"i"(KERNEL_CS) : "memory");
#endif
    __asm__ volatile("mov %0, %%ss; mov %0, %%ds; mov %0, %%es" ::"r"(0x10));
    __asm__ volatile("ltr %w0" ::"r"(0x40));
}

void irq_handler(u8 vector, void (*fn)(u8))
{
    handlers[vector] = fn;
}

void irq_no_eoi(u8 vector, bool quiet)
{
    quiet_vectors[vector] = quiet;
}

void irq_reset(void)
{
    for (u32 v = 32; v < 256; v++) {
        handlers[v] = NULL;
        quiet_vectors[v] = false;
        for (u32 i = 0; i < cpu_count; i++) {
            cpu_at(i)->irqs[v] = 0;
        }
    }
}

u32 irq_count(u8 vector)
{
    return this_cpu()->irqs[vector];
}

static void exception(struct cpu *self, struct regs *r)
{
    self->fault = r->vector;
    if (r->vector == FAULT_PF) {
        uintptr_t cr2;

        __asm__ volatile("mov %%cr2, %0" : "=r"(cr2));
        self->fault_addr = cr2;
    }
    for (size_t i = 0; i < (size_t)(extable_end - extable_start); i++) {
        if (extable_start[i].from == r->ip) {
            r->ip = extable_start[i].to;
            return;
        }
    }
    bail_out("exception %u, error 0x%x, at 0x%llx on processor %u", (u32)r->vector, (u32)r->error,
             (unsigned long long)r->ip, self->index);
}

/* Go on behind the call of a page that has faulted, or that ring 3 has ended. */
static void __attribute__((noreturn)) recover(struct cpu *self)
{
    uintptr_t ip = self->recover_ip, sp = self->recover_sp;

    self->recover_ip = 0;
#ifdef __x86_64__
    __asm__ volatile("mov %0, %%rsp; mov %2, %%r12; xor %%eax, %%eax; jmp *%1" ::"b"(sp), "c"(ip), "S"(self)
                     : "memory");
#else
    __asm__ volatile("mov %0, %%esp; mov %2, %%ebp; xor %%eax, %%eax; xor %%edx, %%edx; jmp *%1" ::"b"(sp), "c"(ip),
                     "S"(self)
                     : "memory");
#endif
    __builtin_unreachable();
}

void trap(struct regs *r)
{
    struct cpu *self = this_cpu();

    if (r->vector < 32) {
        if (self->recover_ip) {
            self->fault = r->vector;
            recover(self);
        }
        exception(self, r);
        return;
    }
    if (r->vector == VEC_USER) {
        self->fault = FAULT_NONE;
        recover(self);
    }
    self->irqs[r->vector]++;
    if (handlers[r->vector]) {
        handlers[r->vector]((u8)r->vector);
    }
    if (r->vector != VEC_SPURIOUS && !quiet_vectors[r->vector]) {
        apic_eoi();
    }
}
