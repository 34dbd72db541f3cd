/* SPDX-License-Identifier: MIT */
/*
 * The other processors: start, work, locks.
 *
 * One that has no work sleeps in HLT, so that eight virtual processors on two real ones do not hinder each other.
 */

#include "guest.h"

#define TRAMPOLINE 0x8000u
#define ICR_INIT 0x4500u /* assert */
#define ICR_SIPI 0x4600u
#define ICR_FIXED 0x4000u

extern const u8 trampoline[], trampoline_end[];
extern void program(void);
u32 cpu_count = 1;

void spin_lock(struct spinlock *lock)
{
    while (__atomic_exchange_n(&lock->held, 1, __ATOMIC_ACQUIRE)) {
        pause();
    }
}

void spin_unlock(struct spinlock *lock)
{
    __atomic_store_n(&lock->held, 0, __ATOMIC_RELEASE);
}

void barrier_wait(struct barrier *b, u32 parties)
{
    u32 generation = b->generation;

    if (__atomic_add_fetch(&b->arrived, 1, __ATOMIC_SEQ_CST) == parties) {
        b->arrived = 0;
        __atomic_store_n(&b->generation, generation + 1, __ATOMIC_SEQ_CST);
    } else {
        while (b->generation == generation) {
            pause();
        }
    }
}

static void __attribute__((noreturn)) work(struct cpu *self)
{
    self->alive = 1;
    for (;;) {
        irq_disable();
        if (!self->fn) {
            irq_wait();
            continue;
        }
        irq_enable();
        self->fn(self->arg);
        __atomic_store_n(&self->fn, NULL, __ATOMIC_SEQ_CST);
    }
}

/* From lib/boot.S, on each processor. */
void cpu_entry(u32 index)
{
    struct cpu *self = cpu_at(index);

    self->index = index;
    self->recover_ip = 0;
    cpu_tables(self);
    if (index == 0) {
        program();
    }
    apic_enable();
    work(self);
}

static void start_one(u32 index)
{
    cpu_at(index)->alive = 0;
    cpu_at(index)->fn = NULL;
    apic_ipi(index, ICR_INIT);
    apic_ipi(index, ICR_SIPI | TRAMPOLINE >> 12);
    apic_ipi(index, ICR_SIPI | TRAMPOLINE >> 12);
    while (!cpu_at(index)->alive) {
        pause();
    }
}

void start_processors(void)
{
    cpu_count = (u32)option_number("cpus", 1);
    if (cpu_count > MAX_CPUS) {
        bail_out("cpus=%u: at most %u", cpu_count, MAX_CPUS);
    }
    memcpy((void *)(uintptr_t)TRAMPOLINE, trampoline, (size_t)(trampoline_end - trampoline));
    for (u32 i = 1; i < cpu_count; i++) {
        start_one(i);
    }
}

void cpu_init(u32 index)
{
    start_one(index);
}

void cpu_start(u32 index, void (*fn)(void *), void *arg)
{
    struct cpu *cpu = cpu_at(index);

    cpu->arg = arg;
    __atomic_store_n(&cpu->fn, fn, __ATOMIC_SEQ_CST);
    apic_ipi(index, ICR_FIXED | VEC_WAKE);
}

void cpu_join(u32 index)
{
    while (__atomic_load_n(&cpu_at(index)->fn, __ATOMIC_SEQ_CST)) {
        pause();
    }
}

void on_cpu(u32 index, void (*fn)(void *), void *arg)
{
    if (index == this_cpu()->index) {
        fn(arg);
        return;
    }
    cpu_start(index, fn, arg);
    cpu_join(index);
}

void on_all(void (*fn)(void *), void *arg)
{
    u32 self = this_cpu()->index;

    for (u32 i = 0; i < cpu_count; i++) {
        if (i != self) {
            cpu_start(i, fn, arg);
        }
    }
    fn(arg);
    for (u32 i = 0; i < cpu_count; i++) {
        if (i != self) {
            cpu_join(i);
        }
    }
}
