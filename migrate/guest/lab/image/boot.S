/* From the PVH entry (32-bit protected mode, flat segments, paging off, EBX = struct hvm_start_info; Xen's
 * docs/misc/pvh.pandoc) to 64-bit C on the boot processor, and from a start-up IPI to the same on the others. */

#include "layout.h"

#define CR0_PE         (1 << 0)
#define CR0_PG         (1 << 31)
#define CR4_PAE        (1 << 5)
#define MSR_EFER       0xc0000080
#define EFER_LME       (1 << 8)
#define APIC_PAGE      (0xfee00000 >> 21)

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_entry

    .section .text.boot, "ax"
    .code32
    .globl pvh_entry
pvh_entry:
    cli
    cld
    /* Accessed and dirty are set from the start: a walk then never writes to a table, which a dirty log would see. */
    movl $(boot_pdpt + PTE_TABLE), boot_pml4
    movl $(boot_pds + PTE_TABLE), %eax
    xorl %ecx, %ecx
1:  movl %eax, boot_pdpt(, %ecx, 8)
    addl $4096, %eax
    incl %ecx
    cmpl $4, %ecx
    jb 1b

    movl $PTE_LARGE, %eax
    xorl %ecx, %ecx
2:  movl %eax, boot_pds(, %ecx, 8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $(4 * 512), %ecx
    jb 2b
    orl $PTE_UNCACHED, boot_pds + APIC_PAGE * 8

    movl $boot_processor, %esi
    /* falls through */

/* Into long mode and on to the 64-bit address in ESI; EBX is kept. */
enter_long_mode:
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $MSR_EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    lgdt gdt_pointer
    movl %cr0, %eax
    orl $(CR0_PG | CR0_PE), %eax
    movl %eax, %cr0
    ljmp $SELECTOR_CODE64, $1f

    .code64
1:  movl $SELECTOR_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %esi, %esi
    jmp *%rsi

boot_processor:
    movl $(stacks + STACK_SIZE), %esp
    movl %ebx, %edi
    call image_main
1:  hlt
    jmp 1b

application_processor:
    movl $1, %edi
    lock xaddl %edi, vcpus_started
    cmpl vcpus_wanted, %edi
    jae 1b
    leal 1(%rdi), %eax
    imull $STACK_SIZE, %eax, %eax
    leaq stacks(%rax), %rsp
    call vcpu_main
1:  hlt
    jmp 1b

/* Copied to TRAMPOLINE, where a start-up IPI sends the other processors in real mode. */
    .code16
    .globl trampoline, trampoline_end
trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl gdt_pointer_copy - trampoline
    movl %cr0, %eax
    orl $CR0_PE, %eax
    movl %eax, %cr0
    ljmpl $SELECTOR_CODE32, $protected_mode
gdt_pointer_copy:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

    .code32
protected_mode:
    movl $SELECTOR_DATA, %eax
    movl %eax, %ds
    movl %eax, %ss
    movl $application_processor, %esi
    jmp enter_long_mode

    .section .rodata
    .balign 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff /* SELECTOR_CODE64 */
    .quad 0x00cf93000000ffff /* SELECTOR_DATA */
    .quad 0x00cf9b000000ffff /* SELECTOR_CODE32 */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

    .data
    .balign 4
    .globl vcpus_started, vcpus_wanted
vcpus_started:
    .long 1
vcpus_wanted:
    .long 1

    .bss
    .balign 4096
    .globl boot_pml4
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pds:
    .skip 4 * 4096
stacks:
    .skip MAX_VCPUS * STACK_SIZE

    .section .note.GNU-stack, "", @progbits
