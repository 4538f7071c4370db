/* The embedded image is an ELF that a PVH loader can place without looking twice. What the guest
 * does is tested by booting it. */
#include <criterion/criterion.h>
#include <elf.h>
#include <string.h>

#include "migrate/guest/lab/abi.h"
#include "migrate/guest/lab/lab.h"

#define PHYS32_ENTRY 18 /* XEN_ELFNOTE_PHYS32_ENTRY */

struct image {
    const uint8_t *bytes;
    size_t size;
    Elf64_Ehdr header;
};

static struct image open_image(void)
{
    struct image image = {0};

    image.bytes = lab_image(&image.size);
    cr_assert_not_null(image.bytes);
    cr_assert_geq(image.size, sizeof(image.header), "expected an ELF header, got %zu bytes",
                  image.size);
    memcpy(&image.header, image.bytes, sizeof(image.header));
    return image;
}

static Elf64_Phdr segment(const struct image *image, unsigned i)
{
    uint64_t at = image->header.e_phoff + (uint64_t)i * sizeof(Elf64_Phdr);
    Elf64_Phdr segment;

    cr_assert_leq(at + sizeof(segment), image->size, "program header %u ends behind the file", i);
    memcpy(&segment, image->bytes + at, sizeof(segment));
    cr_assert(segment.p_offset <= image->size && segment.p_filesz <= image->size - segment.p_offset,
              "segment %u: expected bytes within the file's %zu, got %#lx+%#lx", i, image->size,
              segment.p_offset, segment.p_filesz);
    return segment;
}

/* The PVH entry that the notes name; 0: none does. */
static uint64_t pvh_entry(const struct image *image)
{
    for (unsigned i = 0; i < image->header.e_phnum; i++) {
        Elf64_Phdr note = segment(image, i);
        const uint8_t *at = image->bytes + note.p_offset;
        Elf64_Nhdr header;
        uint64_t entry;

        if (note.p_type != PT_NOTE || note.p_filesz < sizeof(header) + 4 + sizeof(entry))
            continue;
        memcpy(&header, at, sizeof(header));
        memcpy(&entry, at + sizeof(header) + 4, sizeof(entry));
        if (header.n_type == PHYS32_ENTRY && header.n_namesz == 4 && header.n_descsz == 8 &&
            !memcmp(at + sizeof(header), "Xen", 4))
            return entry;
    }
    return 0;
}

Test(lab_image, is_a_static_64_bit_elf)
{
    struct image image = open_image();

    cr_expect_arr_eq(image.header.e_ident, ELFMAG, SELFMAG);
    cr_expect_eq(image.header.e_ident[EI_CLASS], ELFCLASS64);
    cr_expect_eq(image.header.e_ident[EI_DATA], ELFDATA2LSB);
    cr_expect_eq(image.header.e_machine, EM_X86_64);
    cr_expect_eq(image.header.e_type, ET_EXEC, "expected a fixed address, got type %u",
                 image.header.e_type);
    cr_expect_eq(image.header.e_phentsize, sizeof(Elf64_Phdr));
    for (unsigned i = 0; i < image.header.e_phnum; i++) {
        uint32_t type = segment(&image, i).p_type;

        cr_expect(type != PT_INTERP && type != PT_DYNAMIC && type != PT_TLS,
                  "segment %u: a freestanding program has none of type %u", i, type);
    }
}

Test(lab_image, loads_between_its_start_and_the_page_tables_room)
{
    struct image image = open_image();
    uint64_t end = LAB_IMAGE_START;
    unsigned loaded = 0;

    for (unsigned i = 0; i < image.header.e_phnum; i++) {
        Elf64_Phdr s = segment(&image, i);

        if (s.p_type != PT_LOAD)
            continue;
        loaded++;
        cr_expect_eq(s.p_paddr, s.p_vaddr, "segment %u runs at %#lx but loads at %#lx", i,
                     s.p_vaddr, s.p_paddr);
        cr_expect_geq(s.p_paddr, end, "segment %u at %#lx begins before %#lx", i, s.p_paddr, end);
        cr_expect_leq(s.p_filesz, s.p_memsz);
        end = s.p_paddr + s.p_memsz;
    }
    cr_expect_gt(loaded, 0, "expected something to load");
    /* Half of what lies below the sequence table is for page tables: 512 GiB of RAM need 2 MiB. */
    cr_expect_leq(end, LAB_SEQUENCE_TABLE / 2, "the image reaches up to %#lx", end);
}

Test(lab_image, is_entered_inside_its_code)
{
    struct image image = open_image();
    uint64_t entry = pvh_entry(&image);
    bool inside = false;

    cr_assert_neq(entry, 0, "expected a note of Xen's with type 18 (PHYS32_ENTRY)");
    cr_expect_eq(entry, image.header.e_entry);
    for (unsigned i = 0; i < image.header.e_phnum; i++) {
        Elf64_Phdr s = segment(&image, i);

        if (s.p_type == PT_LOAD && s.p_flags & PF_X && entry >= s.p_paddr &&
            entry - s.p_paddr < s.p_filesz) {
            inside = true;
            cr_expect_eq(image.bytes[s.p_offset + (entry - s.p_paddr)], 0xfa,
                         "expected cli at the entry");
        }
    }
    cr_expect(inside, "the entry %#lx is in no executable segment", entry);
}
