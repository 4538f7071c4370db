/* What a host must have for a guest that comes to it. No KVM needed. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/guest/lab/cpu_model.h"

static void make_host(struct cpu_model *m)
{
    static const struct kvm_cpuid_entry2 entries[] = {
        {.function = 0x0, .eax = 0x1f, .ebx = 0x756e6547, .edx = 0x49656e69, .ecx = 0x6c65746e},
        {.function = 0x1, .ecx = 0x00ffffff, .edx = 0x0f8bfbff},
        {.function = 0x7,
         .index = 0,
         .flags = 1,
         .eax = 2,
         .ebx = 0xffff,
         .ecx = 0xff,
         .edx = 0xff},
        {.function = 0x7, .index = 1, .flags = 1, .eax = 0x1c00},
        {.function = 0xd, .index = 0, .flags = 1, .eax = 7, .ebx = 832, .ecx = 832},
        {.function = 0xd, .index = 1, .flags = 1, .eax = 1},
        {.function = 0xd, .index = 2, .flags = 1, .eax = 256, .ebx = 576},
        {.function = 0x40000001, .eax = 0x01007efb},
        {.function = 0x80000001, .ecx = 0x101, .edx = 0x20100800},
        {.function = 0x80000007, .edx = 0x100},
        {.function = 0x80000008, .eax = 0x3934, .ebx = 0x4100d200},
    };

    memset(m, 0, sizeof *m);
    m->tsc_khz = 2700000;
    m->xcr0 = 7;
    m->xsave_size = 4096;
    m->cpuid_count = sizeof entries / sizeof entries[0];
    memcpy(m->cpuid, entries, sizeof entries);
    m->msr_count = 3;
    m->msrs[0] = 0x174;
    m->msrs[1] = 0x10;
    m->msrs[2] = 0xc0000080;
}

static void other_vendor(struct cpu_model *g)
{
    g->cpuid[0].ebx = 0x68747541;
}

static void leaf_1_ecx(struct cpu_model *g)
{
    g->cpuid[1].ecx |= 1u << 30;
}

static void leaf_1_edx(struct cpu_model *g)
{
    g->cpuid[1].edx |= 1u << 30;
}

static void leaf_7_ebx(struct cpu_model *g)
{
    g->cpuid[2].ebx |= 1u << 16;
}

static void leaf_7_ecx(struct cpu_model *g)
{
    g->cpuid[2].ecx |= 1u << 11;
}

static void leaf_7_edx(struct cpu_model *g)
{
    g->cpuid[2].edx |= 1u << 23;
}

static void leaf_7_1(struct cpu_model *g)
{
    g->cpuid[3].eax |= 1u << 4;
}

static void leaf_d_1(struct cpu_model *g)
{
    g->cpuid[5].eax |= 8;
}

static void paravirtual(struct cpu_model *g)
{
    g->cpuid[7].eax |= 1u << 30;
}

static void extended_edx(struct cpu_model *g)
{
    g->cpuid[8].edx |= 1u << 27;
}

static void extended_8(struct cpu_model *g)
{
    g->cpuid[10].ebx |= 1;
}

static void more_xcr0(struct cpu_model *g)
{
    g->xcr0 |= 0xe0;
}

static void larger_xsave(struct cpu_model *g)
{
    g->xsave_size = 8192;
}

static void other_layout(struct cpu_model *g)
{
    g->cpuid[6].ebx = 640;
}

static void faster_tsc(struct cpu_model *g)
{
    g->tsc_khz = 2701000;
}

static void no_tsc(struct cpu_model *g)
{
    g->tsc_khz = 0;
}

static void unknown_msr(struct cpu_model *g)
{
    g->msrs[g->msr_count++] = 0xda0;
}

static const struct {
    const char *name;
    void (*alter)(struct cpu_model *guest);
    const char *reason; /* a part of it */
} alterations[] = {
    {"vendor", other_vendor, "vendor"},
    {"leaf 1 ECX", leaf_1_ecx, "CPUID 0x1.0 ECX bits 0x40000000"},
    {"leaf 1 EDX", leaf_1_edx, "CPUID 0x1.0 EDX bits 0x40000000"},
    {"leaf 7 EBX", leaf_7_ebx, "CPUID 0x7.0 EBX bits 0x10000"},
    {"leaf 7 ECX", leaf_7_ecx, "CPUID 0x7.0 ECX bits 0x800"},
    {"leaf 7 EDX", leaf_7_edx, "CPUID 0x7.0 EDX bits 0x800000"},
    {"leaf 7.1 EAX", leaf_7_1, "CPUID 0x7.1 EAX bits 0x10"},
    {"leaf 0xd.1 EAX", leaf_d_1, "CPUID 0xd.1 EAX bits 0x8"},
    {"paravirtual features", paravirtual, "CPUID 0x40000001.0 EAX bits 0x40000000"},
    {"extended EDX", extended_edx, "CPUID 0x80000001.0 EDX bits 0x8000000"},
    {"leaf 0x80000008 EBX", extended_8, "CPUID 0x80000008.0 EBX bits 0x1"},
    {"XCR0", more_xcr0, "XCR0 0xe7 against 0x7"},
    {"XSAVE size", larger_xsave, "8192 bytes"},
    {"XSAVE layout", other_layout, "extended state 2 lies at 640"},
    {"TSC frequency", faster_tsc, "2701000 kHz"},
    {"no TSC frequency", no_tsc, "unknown"},
    {"MSR", unknown_msr, "MSR 0xda0"},
};

static struct cpu_model *new_models(void)
{
    struct cpu_model *models = calloc(2, sizeof *models);

    cr_assert(models);
    make_host(&models[0]);
    make_host(&models[1]);
    return models;
}

Test(lab_cpu_model, the_same_host_takes_a_guest)
{
    struct cpu_model *models = new_models();
    struct reasons reasons = {0};

    cpu_model_check(&models[0], &models[1], &reasons);
    cr_expect_eq(reasons.count, 0, "expected no reason, got: %s", reasons.text);
    free(models);
}

/* A host with more is no obstacle; nor is one that scales the TSC, nor a difference KVM takes for
 * none. */
Test(lab_cpu_model, a_better_host_takes_a_guest)
{
    struct cpu_model *models = new_models();
    struct reasons reasons = {0};

    leaf_7_ebx(&models[1]);
    more_xcr0(&models[1]);
    larger_xsave(&models[1]);
    unknown_msr(&models[1]);
    models[1].tsc_scaling = true;
    models[1].tsc_khz = 3000000;
    models[0].msrs[models[0].msr_count++] = 0x8b;
    cpu_model_check(&models[0], &models[1], &reasons);
    cr_expect_eq(reasons.count, 0, "expected no reason, got: %s", reasons.text);
    models[1].tsc_scaling = false;
    models[1].tsc_khz = 2700600;
    cpu_model_check(&models[0], &models[1], &reasons);
    cr_expect_eq(reasons.count, 0, "expected no reason, got: %s", reasons.text);
    free(models);
}

Test(lab_cpu_model, each_lack_has_its_reason)
{
    for (size_t i = 0; i < sizeof alterations / sizeof alterations[0]; i++) {
        struct cpu_model *models = new_models();
        struct reasons reasons = {0};

        alterations[i].alter(&models[0]);
        cpu_model_check(&models[0], &models[1], &reasons);
        cr_expect_eq(reasons.count, 1, "%s: expected 1 reason, got %u: %s", alterations[i].name,
                     reasons.count, reasons.text);
        cr_expect(reasons.text && strstr(reasons.text, alterations[i].reason),
                  "%s: expected \"%s\" in: %s", alterations[i].name, alterations[i].reason,
                  reasons.text);
        reasons_free(&reasons);
        free(models);
    }
}

Test(lab_cpu_model, all_reasons_come_at_once)
{
    struct cpu_model *models = new_models();
    struct reasons reasons = {0};

    other_vendor(&models[0]);
    leaf_7_ebx(&models[0]);
    larger_xsave(&models[0]);
    faster_tsc(&models[0]);
    unknown_msr(&models[0]);
    cpu_model_check(&models[0], &models[1], &reasons);
    cr_expect_eq(reasons.count, 5, "expected 5 reasons, got %u: %s", reasons.count, reasons.text);
    reasons_free(&reasons);
    free(models);
}

static const struct workload workload = {.touch = 1 << 20,
                                         .content = CONTENT_COMPRESSIBLE,
                                         .hot = 2 << 20,
                                         .hot_at = 4096,
                                         .rate = UINT64_MAX,
                                         .pattern = WORKLOAD_HOTCOLD,
                                         .hot_share = 80,
                                         .window = 8192,
                                         .seed = 7};

Test(lab_cpu_model, encoding_keeps_everything)
{
    struct cpu_model *models = new_models();
    struct workload got;
    struct error err = {0};
    uint8_t *bytes;
    uint32_t size;

    cr_assert_eq(cpu_model_encode(&models[0], &workload, &bytes, &size, &err), 0, "%s", err.text);
    memset(&models[1], 0xff, sizeof models[1]);
    cr_assert_eq(cpu_model_decode(bytes, size, &models[1], &got, &err), 0, "%s", err.text);
    cr_expect_eq(memcmp(&models[0], &models[1], sizeof models[0]), 0, "the model differs");
    cr_expect(got.touch == workload.touch && got.content == workload.content &&
                  got.hot == workload.hot && got.hot_at == workload.hot_at &&
                  got.rate == workload.rate && got.pattern == workload.pattern &&
                  got.hot_share == workload.hot_share && got.window == workload.window &&
                  got.seed == workload.seed,
              "the workload differs");
    free(bytes);
    free(models);
}

Test(lab_cpu_model, damaged_bytes_are_refused)
{
    struct cpu_model *models = new_models();
    struct workload got;
    uint8_t *bytes;
    uint32_t size;

    cr_assert_eq(cpu_model_encode(&models[0], &workload, &bytes, &size, NULL), 0);
    for (uint32_t length = 0; length < size; length++) {
        uint8_t *copy = malloc(length ? length : 1);
        struct error err = {0};

        memcpy(copy, bytes, length);
        cr_expect_eq(cpu_model_decode(copy, length, &models[1], &got, &err), -EBADMSG,
                     "%u of %u bytes", length, size);
        cr_expect(err.text[0], "%u of %u bytes: no text", length, size);
        free(copy);
    }
    for (uint32_t at = 0; at < size; at++) /* any answer, but within bounds */
        for (int bit = 0; bit < 8; bit++) {
            bytes[at] ^= (uint8_t)(1 << bit);
            if (cpu_model_decode(bytes, size, &models[1], &got, NULL) == 0)
                cr_expect(models[1].cpuid_count <= CPU_MAX_CPUID &&
                              models[1].msr_count <= CPU_MAX_MSRS,
                          "byte %u: %u CPUID entries, %u MSRs", at, models[1].cpuid_count,
                          models[1].msr_count);
            bytes[at] ^= (uint8_t)(1 << bit);
        }
    free(bytes);
    free(models);
}
