/* Numbers that the boot assembler and C agree on. */
#ifndef LAB_IMAGE_LAYOUT_H
#define LAB_IMAGE_LAYOUT_H

#define MAX_VCPUS  64
#define STACK_SIZE 4096
#define TRAMPOLINE 0x8000 /* page aligned, below 1 MiB */

#define SELECTOR_CODE64 0x08
#define SELECTOR_DATA   0x10
#define SELECTOR_CODE32 0x18

/* Page table entries (Intel SDM vol. 3, 4.5): present, writable, accessed; a 2 MiB page is dirty
 * from the start too. */
#define PTE_TABLE    0x23
#define PTE_LARGE    0xe3
#define PTE_UNCACHED 0x18

#endif
