#include "boot_info.h"

#include <stdbool.h>
#include <stddef.h>

#include "console.h"
#include "migrate/guest/lab/abi.h"

#define START_INFO_MAGIC 0x336ec578u
enum { RAM = 1, PAGE_SHIFT = 12, MEMORY_MAP_SINCE_VERSION = 1 };

struct start_info {
    uint32_t magic, version, flags, module_count;
    uint64_t modules, command_line, rsdp, memory_map;
    uint32_t memory_map_entries, reserved;
};

struct memory_map_entry {
    uint64_t start, size;
    uint32_t type, reserved;
};

static const struct {
    const char *key;
    size_t offset;
} keys[] = {
    {"vcpus", offsetof(struct parameters, vcpus)},
    {"hot", offsetof(struct parameters, hot)},
    {"hot_at", offsetof(struct parameters, hot_at)},
    {"rate", offsetof(struct parameters, rate)},
    {"pattern", offsetof(struct parameters, pattern)},
    {"hot_share", offsetof(struct parameters, hot_share)},
    {"window", offsetof(struct parameters, window)},
    {"seed", offsetof(struct parameters, seed)},
};

/* The value's text if `word` is "key=value", else NULL. */
static const char *value_of(const char *word, const char *key)
{
    while (*key && *word == *key) {
        word++;
        key++;
    }
    return !*key && *word == '=' ? word + 1 : NULL;
}

static uint64_t parse_number(const char *text, const char *key)
{
    uint64_t value = 0;

    if (*text < '0' || *text > '9')
        panic_text("the command line has no decimal number behind", key);
    for (; *text >= '0' && *text <= '9'; text++)
        if (__builtin_mul_overflow(value, 10, &value) ||
            __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value))
            panic_text("the command line has too large a number behind", key);
    if (*text && *text != ' ')
        panic_text("the command line has text behind the number of", key);
    return value;
}

static void parse_word(const char *word, struct parameters *parameters)
{
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        const char *value = value_of(word, keys[i].key);

        if (value)
            *(uint64_t *)((char *)parameters + keys[i].offset) = parse_number(value, keys[i].key);
    }
}

static void parse_command_line(const char *text, struct parameters *parameters)
{
    for (bool between = true; *text; text++) {
        if (between && *text != ' ')
            parse_word(text, parameters);
        between = *text == ' ';
    }
}

static void parse_memory_map(const struct memory_map_entry *entry, uint32_t count,
                             struct memory *memory)
{
    bool image_fits = false;

    for (; count; count--, entry++) {
        uint64_t end = entry->start + entry->size;

        if (entry->type != RAM)
            continue;
        memory->bytes += entry->size;
        if (entry->start <= LAB_IMAGE_START && end >= LAB_WORKLOAD_START) {
            image_fits = true;
            memory->low_pages = (end - LAB_WORKLOAD_START) >> PAGE_SHIFT;
        }
        if (entry->start == LAB_HIGH_RAM_START)
            memory->high_pages = entry->size >> PAGE_SHIFT;
    }
    if (!image_fits)
        panic_number("the image needs RAM from 1 to 16 MiB; there are", "bytes", memory->bytes);
}

void boot_info_read(uint64_t start_info, struct parameters *parameters, struct memory *memory)
{
    const struct start_info *info = (const struct start_info *)start_info;

    if (info->magic != START_INFO_MAGIC)
        panic_number("not started through the PVH entry", "magic", info->magic);
    if (info->version < MEMORY_MAP_SINCE_VERSION || !info->memory_map)
        panic_number("no memory map in hvm_start_info", "version", info->version);
    if (info->command_line)
        parse_command_line((const char *)info->command_line, parameters);
    parse_memory_map((const struct memory_map_entry *)info->memory_map, info->memory_map_entries,
                     memory);
}
