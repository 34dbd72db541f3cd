/* SPDX-License-Identifier: MIT */
/*
 * From QEMU's PVH entry to C, on the boot processor and on the others.
 *
 * PVH (a Xen note in the ELF file) and not multiboot: QEMU loads it as ROM, so that the program is
 * there again, as new, after a reset of the machine. The entry is in 32-bit protected mode without
 * paging, with the physical address of struct hvm_start_info in EBX.
 *
 * All of the first 4 GiB is mapped 1:1, readable, writable, executable, and open to ring 3, in large
 * pages; lib/paging.c has a window of small pages.
 */

#define CPU_BLOCK   16384           /* lib/guest.h: stack and struct cpu of one processor */
#define TRAMPOLINE  0x8000          /* where the other processors start, in real mode */
#define PTE_LARGE   0x87            /* present, writable, user, large */
#define PTE_TABLE   0x07

#ifdef __x86_64__
#define CR4_BITS    0x620           /* PAE; OSFXSR and OSXMMEXCPT for XMM registers */
#define WORD        .quad
#else
#define CR4_BITS    0x610           /* PSE; the same */
#define WORD        .long
#endif

    .section .note.xen, "a", @note
    .align 4
    .long 4, 2f - 1f, 18            /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
1:  WORD start
2:

    .text
    .code32
    .globl start
start:
    cli
    cld
    mov $(cpu_blocks + CPU_BLOCK), %esp
    mov %ebx, start_info
    lgdt boot_gdtr
    ljmp $8, $1f
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %ebx, %ebx                  /* index of this processor */

/* With flat segments of boot_gdt, the processor's index in EBX and its stack in ESP. */
enable_paging:
    mov %cr4, %eax
    or $CR4_BITS, %eax
    mov %eax, %cr4
    mov $page_root, %eax
    mov %eax, %cr3
#ifdef __x86_64__
    mov $0xc0000080, %ecx           /* EFER: LME */
    rdmsr
    or $0x100, %eax
    wrmsr
#endif
    mov %cr0, %eax
    and $~0x6000000c, %eax          /* not CD, NW, TS, EM */
    or $0x80010002, %eax            /* PG, WP, MP */
    mov %eax, %cr0
#ifdef __x86_64__
    ljmp $0x18, $1f
    .code64
1:  mov %ebx, %edi
    xor %ebp, %ebp
    call cpu_entry
#else
    jmp 1f
1:  push $0
    push $0
    push $0
    push %ebx
    call cpu_entry
#endif
    ud2

/* What the others execute first: copied to TRAMPOLINE. */
    .globl trampoline, trampoline_end
    .code16
trampoline:
    cli
    cld
    mov %cs, %ax
    mov %ax, %ds
    lgdtl (trampoline_gdtr - trampoline)
    mov %cr0, %eax
    or $1, %eax
    mov %eax, %cr0
    ljmpl $8, $other_processor
trampoline_gdtr:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
trampoline_end:

    .code32
other_processor:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $1, %eax                    /* CPUID.1: EBX[31:24] is the initial APIC id, here the index */
    cpuid
    shr $24, %ebx
    mov %ebx, %eax
    inc %eax
    imul $CPU_BLOCK, %eax
    lea cpu_blocks(%eax), %esp
    jmp enable_paging

    .section .rodata
    .align 8
boot_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        /* 0x08: 32-bit code */
    .quad 0x00cf93000000ffff        /* 0x10: data */
    .quad 0x00af9b000000ffff        /* 0x18: 64-bit code */
boot_gdt_end:
boot_gdtr:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt

    .data
    .globl start_info
start_info:
    .long 0

    .align 4096
    .globl page_root
#ifdef __x86_64__
page_root:
    .quad pdpt + PTE_TABLE
    .fill 511, 8, 0
pdpt:
    .quad page_dir + PTE_TABLE, page_dir + 0x1000 + PTE_TABLE
    .quad page_dir + 0x2000 + PTE_TABLE, page_dir + 0x3000 + PTE_TABLE
    .fill 508, 8, 0
    .globl page_dir
page_dir:
    .set i, 0
    .rept 2048
    .quad i * 0x200000 + PTE_LARGE
    .set i, i + 1
    .endr
#else
    .globl page_dir
page_root:
page_dir:
    .set i, 0
    .rept 1024
    .long i * 0x400000 + PTE_LARGE
    .set i, i + 1
    .endr
#endif

/* Entries of the IDT, 16 bytes each: the same frame whether the processor pushes an error code or not. */
    .text
    .globl trap_stubs
    .align 16
#ifdef __x86_64__
    .code64
#else
    .code32
#endif
trap_stubs:
    .set i, 0
    .rept 256
    .if (i == 8) || ((i >= 10) && (i <= 14)) || (i == 17) || (i == 21)
    .else
    push $0
    .endif
    .byte 0x68
    .long i
    jmp trap_common
    .balign 16
    .set i, i + 1
    .endr

trap_common:
#ifdef __x86_64__
    push %rax
    push %rcx
    push %rdx
    push %rbx
    push %rbp
    push %rsi
    push %rdi
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    mov %rsp, %rbp
    and $-16, %rsp
    cld
    call trap
    mov %rbp, %rsp
    .globl trap_return
trap_return:
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rdi
    pop %rsi
    pop %rbp
    pop %rbx
    pop %rdx
    pop %rcx
    pop %rax
    add $16, %rsp
    iretq
#else
    push %eax
    push %ecx
    push %edx
    push %ebx
    push %ebp
    push %esi
    push %edi
    mov $0x10, %eax                 /* from ring 3: DS and ES are the user's */
    mov %eax, %ds
    mov %eax, %es
    mov %esp, %ebp
    push %esp
    cld
    call trap
    mov %ebp, %esp
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    pop %edx
    pop %ecx
    pop %eax
    add $8, %esp
    iret
#endif

/*
 * u64 hv_call_page(const struct hv_regs *in, struct cpu *self): calls self->call_target with the registers of
 * the hypercall ABI of this mode (TLFS 3.7). If that faults, trap() continues at "recovered" with the same stack.
 */
    .globl hv_call_page, user_call
#ifdef __x86_64__
hv_call_page:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushf
    mov %rsi, %r12
    movq $recovered, 0(%r12)
    mov %rsp, 8(%r12)
    mov 0(%rdi), %rcx
    mov 8(%rdi), %rdx
    mov 16(%rdi), %r8
    call *16(%r12)
recovered:
    movq $0, 0(%r12)
    popf                            /* a fault has disabled interrupts */
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    ret

/* void user_call(struct cpu *self): the same in ring 3; comes back by int $0x80 or by a fault. */
user_call:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    pushf
    mov %rdi, %r12
    movq $recovered, 0(%r12)
    mov %rsp, 8(%r12)
    mov %rsp, %rax
    sub $256, %rax
    push $0x2b
    push %rax
    push $2
    push $0x33
    push $1f
    iretq
1:  xor %ecx, %ecx
    xor %edx, %edx
    xor %r8d, %r8d
    call *16(%r12)
    int $0x80
    ud2
#else
hv_call_page:
    push %ebx
    push %ebp
    push %esi
    push %edi
    pushf
    mov 24(%esp), %eax              /* in */
    mov 28(%esp), %ebp              /* self */
    movl $recovered, 0(%ebp)
    mov %esp, 4(%ebp)
    mov 8(%eax), %ecx               /* input: EBX:ECX */
    mov 12(%eax), %ebx
    mov 16(%eax), %esi              /* output: EDI:ESI */
    mov 20(%eax), %edi
    mov 4(%eax), %edx               /* control: EDX:EAX */
    mov 0(%eax), %eax
    call *8(%ebp)
recovered:
    movl $0, 0(%ebp)
    popf
    pop %edi
    pop %esi
    pop %ebp
    pop %ebx
    ret

user_call:
    push %ebx
    push %ebp
    push %esi
    push %edi
    pushf
    mov 24(%esp), %ebp
    movl $recovered, 0(%ebp)
    mov %esp, 4(%ebp)
    mov %esp, %eax
    sub $256, %eax
    push $0x2b
    push %eax
    push $2
    push $0x23
    push $1f
    mov $0x2b, %ecx
    mov %ecx, %ds
    mov %ecx, %es
    iret
1:  xor %eax, %eax
    xor %edx, %edx
    xor %ebx, %ebx
    xor %ecx, %ecx
    xor %esi, %esi
    xor %edi, %edi
    call *8(%ebp)
    int $0x80
    ud2
#endif
