#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "migrate/guest/lab/abi.h"
#include "migrate/guest/lab/vm.h"

/* Xen's HVM direct boot (xen/include/public/arch-x86/hvm/start_info.h). */
enum {
    PVH_MAGIC = 0x336ec578,
    PVH_VERSION = 1,
    PVH_NOTE_ENTRY = 18, /* XEN_ELFNOTE_PHYS32_ENTRY */
    PVH_MEMORY_RAM = 1,
    PVH_MEMORY_RESERVED = 2,
};

struct pvh_start_info {
    uint32_t magic, version, flags, module_count;
    uint64_t modules, command_line, rsdp, memory_map;
    uint32_t memory_map_entries, reserved;
};

struct pvh_memory {
    uint64_t address, size;
    uint32_t type, reserved;
};

/* Where the boot information lies: the end of conventional memory, which the image leaves alone
 * until it has read it. */
enum {
    BOOT_START_INFO = 0x9e000,
    BOOT_MEMORY_MAP = 0x9e100,
    BOOT_COMMAND_LINE = 0x9e800,
    BOOT_COMMAND_LINE_SIZE = 0x800,
    CONVENTIONAL_END = 0xa0000,
    EXTENDED_START = 0x100000,
};

struct image {
    const uint8_t *bytes;
    size_t size;
    const Elf64_Ehdr *head;
    const Elf64_Phdr *segments;
};

static bool inside(uint64_t offset, uint64_t length, uint64_t size)
{
    return offset <= size && length <= size - offset;
}

static int parse_head(struct image *image, struct error *err)
{
    const Elf64_Ehdr *head = (const void *)image->bytes;

    if (image->size < sizeof *head || memcmp(head->e_ident, ELFMAG, SELFMAG) != 0 ||
        head->e_ident[EI_CLASS] != ELFCLASS64 || head->e_machine != EM_X86_64 ||
        head->e_phentsize != sizeof(Elf64_Phdr) ||
        !inside(head->e_phoff, (uint64_t)head->e_phnum * sizeof(Elf64_Phdr), image->size))
        return error_set(err, ENOEXEC, "the guest image is no x86-64 ELF file");
    image->head = head;
    image->segments = (const void *)(image->bytes + head->e_phoff);
    return 0;
}

/* Looks through one segment of notes for Xen's entry point. */
static bool find_entry_note(const uint8_t *notes, uint64_t size, uint32_t *entry)
{
    uint64_t at = 0;

    while (inside(at, sizeof(Elf64_Nhdr), size)) {
        const Elf64_Nhdr *note = (const void *)(notes + at);
        uint64_t name = at + sizeof *note;
        uint64_t value = name + ((note->n_namesz + 3ull) & ~3ull);

        if (!inside(name, note->n_namesz, size) || !inside(value, note->n_descsz, size))
            return false;
        if (note->n_type == PVH_NOTE_ENTRY && note->n_namesz == 4 &&
            memcmp(notes + name, "Xen", 4) == 0 && note->n_descsz >= sizeof *entry) {
            memcpy(entry, notes + value, sizeof *entry);
            return true;
        }
        at = value + ((note->n_descsz + 3ull) & ~3ull);
    }
    return false;
}

static int find_entry(const struct image *image, uint32_t *entry, struct error *err)
{
    for (unsigned i = 0; i < image->head->e_phnum; i++) {
        const Elf64_Phdr *segment = &image->segments[i];

        if (segment->p_type == PT_NOTE &&
            inside(segment->p_offset, segment->p_filesz, image->size) &&
            find_entry_note(image->bytes + segment->p_offset, segment->p_filesz, entry))
            return 0;
    }
    return error_set(err, ENOEXEC, "the guest image has no PVH entry point (Xen note 18)");
}

static int load_segments(struct lab *lab, const struct image *image, struct error *err)
{
    for (unsigned i = 0; i < image->head->e_phnum; i++) {
        const Elf64_Phdr *segment = &image->segments[i];
        uint8_t *to;

        if (segment->p_type != PT_LOAD)
            continue;
        to = lab_memory(lab, segment->p_paddr, segment->p_memsz);
        if (!to || segment->p_filesz > segment->p_memsz ||
            !inside(segment->p_offset, segment->p_filesz, image->size))
            return error_set(err, ENOEXEC, "segment %u of the guest image does not fit its memory",
                             i);
        memcpy(to, image->bytes + segment->p_offset, segment->p_filesz);
    }
    return 0;
}

static void write_memory_map(struct lab *lab, struct pvh_start_info *info)
{
    struct pvh_memory map[4] = {
        {0, CONVENTIONAL_END, PVH_MEMORY_RAM},
        {CONVENTIONAL_END, EXTENDED_START - CONVENTIONAL_END, PVH_MEMORY_RESERVED},
        {EXTENDED_START, lab->regions[0].size - EXTENDED_START, PVH_MEMORY_RAM},
    };
    uint32_t entries = 3;

    if (lab->region_count > 1)
        map[entries++] =
            (struct pvh_memory){LAB_HIGH_RAM_START, lab->regions[1].size, PVH_MEMORY_RAM};
    memcpy(lab_memory(lab, BOOT_MEMORY_MAP, sizeof map), map, sizeof map);
    info->memory_map = BOOT_MEMORY_MAP;
    info->memory_map_entries = entries;
}

static void write_command_line(struct lab *lab, struct pvh_start_info *info)
{
    const struct workload *w = &lab->workload;
    uint64_t hot = w->rate > 0 ? w->hot / GUEST_PAGE_SIZE : 0;

    snprintf(lab_memory(lab, BOOT_COMMAND_LINE, BOOT_COMMAND_LINE_SIZE), BOOT_COMMAND_LINE_SIZE,
             "vcpus=%u hot=%" PRIu64 " hot_at=%" PRIu64 " rate=%" PRIu64
             " pattern=%u hot_share=%u window=%" PRIu64 " seed=%" PRIu64,
             lab->vcpus, hot, w->hot_at / GUEST_PAGE_SIZE, w->rate == UINT64_MAX ? 0 : w->rate,
             (unsigned)w->pattern, w->hot_share, w->window / GUEST_PAGE_SIZE, w->seed);
    info->command_line = BOOT_COMMAND_LINE;
}

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type)
{
    return (struct kvm_segment){.limit = 0xffffffff,
                                .selector = selector,
                                .type = type,
                                .present = 1,
                                .db = 1,
                                .s = 1,
                                .g = 1};
}

/* 32-bit protected mode without paging, EBX pointing at the start information. */
static int set_registers(struct lab *lab, uint32_t entry, struct error *err)
{
    int fd = lab->machine->vcpu[0].fd;
    struct kvm_regs regs = {.rip = entry, .rbx = BOOT_START_INFO, .rflags = 2};
    struct kvm_sregs sregs;

    if (ioctl(fd, KVM_GET_SREGS, &sregs) < 0)
        return error_set_errno(err, errno, "reading vCPU 0's registers failed");
    sregs.cs = flat_segment(0x08, 11);
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = flat_segment(0x10, 3);
    sregs.tr = (struct kvm_segment){.limit = 0x67, .selector = 0x18, .type = 11, .present = 1};
    sregs.cr0 = 0x11; /* PE, ET */
    sregs.cr4 = 0;
    sregs.efer = 0;
    if (ioctl(fd, KVM_SET_SREGS, &sregs) < 0 || ioctl(fd, KVM_SET_REGS, &regs) < 0)
        return error_set_errno(err, errno, "setting vCPU 0's registers failed");
    return 0;
}

int lab_boot(struct lab *lab, const void *bytes, size_t size, struct error *err)
{
    struct image image = {.bytes = bytes, .size = size};
    struct pvh_start_info info = {.magic = PVH_MAGIC, .version = PVH_VERSION};
    uint32_t entry = 0;
    int ret;

    if ((ret = parse_head(&image, err)) < 0 || (ret = find_entry(&image, &entry, err)) < 0 ||
        (ret = load_segments(lab, &image, err)) < 0)
        return ret;
    write_memory_map(lab, &info);
    write_command_line(lab, &info);
    memcpy(lab_memory(lab, BOOT_START_INFO, sizeof info), &info, sizeof info);
    return set_registers(lab, entry, err);
}
