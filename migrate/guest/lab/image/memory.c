#include "memory.h"

#include "console.h"
#include "layout.h"

enum { ENTRIES = 512 };
#define LARGE_PAGE 0x200000ull
#define GIB        0x40000000ull

extern uint64_t boot_pml4[ENTRIES];
extern char image_end[];

static uint64_t *new_table(uint64_t *next)
{
    uint64_t *table = (uint64_t *)*next;

    if (*next + PAGE_SIZE > LAB_SEQUENCE_TABLE)
        panic("no room for page tables: too much RAM");
    *next += PAGE_SIZE;
    for (int i = 0; i < ENTRIES; i++)
        table[i] = 0;
    return table;
}

static uint64_t *table_below(uint64_t *entry, uint64_t *next)
{
    if (!*entry)
        *entry = (uint64_t)new_table(next) | PTE_TABLE;
    return (uint64_t *)(*entry & ~(uint64_t)(PAGE_SIZE - 1));
}

static void map_gib(uint64_t address, uint64_t *next)
{
    uint64_t *pointers = table_below(&boot_pml4[address / GIB / ENTRIES], next);
    uint64_t *directory = table_below(&pointers[address / GIB % ENTRIES], next);

    for (int i = 0; i < ENTRIES; i++)
        directory[i] = (address + (uint64_t)i * LARGE_PAGE) | PTE_LARGE;
}

void memory_map_high(uint64_t pages)
{
    uint64_t next = (uint64_t)image_end;
    uint64_t end = LAB_HIGH_RAM_START + pages * PAGE_SIZE;

    for (uint64_t address = LAB_HIGH_RAM_START; address < end; address += GIB)
        map_gib(address, &next);
}

void hot_set_place(struct hot_set *hot, const struct memory *memory, uint64_t at, uint64_t pages)
{
    uint64_t available = memory->low_pages + memory->high_pages;

    if (pages > LAB_MAX_HOT_PAGES)
        panic_number("hot= is larger than the sequence table", "pages", pages);
    if (at > available || pages > available - at)
        panic_number("hot= and hot_at= reach beyond the RAM there is", "pages", available);
    hot->pages = pages;
    hot->base = LAB_WORKLOAD_START + at * PAGE_SIZE;
    hot->split = at < memory->low_pages ? memory->low_pages - at : 0;
    hot->skip = LAB_HIGH_RAM_START - LAB_WORKLOAD_START - memory->low_pages * PAGE_SIZE;
}
