/* The self-check: every vCPU compares the stamps of its own share with what it wrote there last. It
 * does not write meanwhile, or it would cover up what it is looking for. */
#include "migrate/guest/workload_pattern.h"
#include "vcpu.h"

enum { STEP_PAGES = 16 };

static void note_bad(struct vcpu *v, uint64_t index, enum stamp_result result)
{
    if (!v->check_found++) {
        v->bad_page = index;
        v->bad_result = result;
    }
    v->check_bad++;
}

static void check_page(struct vcpu *v, uint64_t index)
{
    uint32_t expected = sequence_table()[index];
    enum stamp_result result;

    if (!expected)
        return;
    v->check_pages++;
    result = stamp_check(hot_set_page(&guest.hot, index), (uint32_t)index, expected);
    if (result != STAMP_GOOD)
        note_bad(v, index, result);
}

static void check_begin(struct vcpu *v, uint32_t request)
{
    v->check_request = request;
    v->check_place = 0;
    v->check_pages = 0;
    v->check_found = 0;
}

bool check_step(struct vcpu *v)
{
    uint32_t request = __atomic_load_n(&check.request, __ATOMIC_SEQ_CST);
    uint32_t vcpu_count = (uint32_t)guest.parameters.vcpus;
    uint64_t share = workload_pattern_share(guest.hot.pages, v->number, vcpu_count);

    if (request == v->check_done)
        return false;
    if (request != v->check_request)
        check_begin(v, request);
    for (int left = STEP_PAGES; left && v->check_place < share; left--)
        check_page(v, v->check_place++ * vcpu_count + v->number);
    if (v->check_place < share)
        return true;
    __atomic_store_n(&v->check_done, request, __ATOMIC_SEQ_CST);
    return true;
}
