/* The writes themselves. The inner loops are what an interpreting KVM spends its time in: about a
 * dozen instructions a page, one multiplication, no call, no division. */
#include "migrate/guest/workload_pattern.h"
#include "vcpu.h"

/* What the inner loops need, in registers. */
struct strokes {
    uint64_t index, count; /* the first page, how many */
    uint32_t step;         /* from a page to the next */
    uint32_t sequence;
};

/* Stamps pages `step` apart, none of them on the other side of the hole. */
static void write_run(const struct strokes *s)
{
    uint64_t word = stamp_word((uint32_t)s->index, s->sequence);
    uint64_t next_word = stamp_word(s->step, 1);
    char *page = hot_set_page(&guest.hot, s->index);
    volatile uint32_t *last = sequence_table() + s->index;
    uint64_t stride = (uint64_t)s->step * PAGE_SIZE, step = s->step;
    uint32_t sequence = s->sequence;

    for (uint64_t left = s->count; left; left--) {
        stamp_store(page, word);
        *last = sequence++;
        word += next_word;
        page += stride;
        last += step;
    }
}

/* How many of the pages from `index` on, `step` apart, come before the hole if it is ahead; else
 * `count`. */
static uint64_t before_hole(uint64_t index, uint64_t count, uint32_t step)
{
    uint64_t split = guest.hot.split;
    uint64_t before = index < split ? (split - index - 1) / step + 1 : count;

    return before < count ? before : count;
}

static void write_neighbours(struct vcpu *v, uint64_t count, uint64_t elapsed_ms)
{
    const struct parameters *p = &guest.parameters;
    uint32_t vcpu_count = (uint32_t)p->vcpus, pattern = (uint32_t)p->pattern;

    while (count) {
        uint64_t run = workload_pattern_run(pattern, p->hot, p->window, v->counter, v->number,
                                            vcpu_count, elapsed_ms);
        struct strokes s = {
            .index = workload_pattern_page(pattern, p->hot, 0, p->window, p->seed, v->counter,
                                           v->number, vcpu_count, elapsed_ms),
            .step = vcpu_count,
            .sequence = v->sequence,
        };

        s.count = before_hole(s.index, run < count ? run : count, s.step);
        write_run(&s);
        v->sequence += (uint32_t)s.count;
        v->counter += s.count;
        count -= s.count;
    }
}

/* What the drawing of pages needs and does not change from page to page. */
struct draw {
    uint64_t seed, share, tenth;
    uint32_t pattern, hot_share, number, vcpu_count;
};

static inline uint64_t draw_page(const struct draw *d, uint64_t counter)
{
    uint64_t hash = workload_pattern_hash(d->seed, counter), place;

    if (d->pattern == WORKLOAD_RANDOM)
        place = workload_pattern_scale(hash, d->share);
    else
        place = workload_pattern_hotcold(d->share, d->tenth, d->hot_share, hash);
    return place * d->vcpu_count + d->number;
}

static void write_drawn(struct vcpu *v, uint64_t count)
{
    const struct parameters *p = &guest.parameters;
    const struct hot_set hot = guest.hot;
    const struct draw d = {
        .seed = p->seed + v->number,
        .share = workload_pattern_share(p->hot, v->number, (uint32_t)p->vcpus),
        .tenth = workload_pattern_tenth(p->hot, v->number, (uint32_t)p->vcpus),
        .pattern = (uint32_t)p->pattern,
        .hot_share = (uint32_t)p->hot_share,
        .number = v->number,
        .vcpu_count = (uint32_t)p->vcpus,
    };
    uint64_t counter = v->counter;
    uint32_t sequence = v->sequence;

    for (uint64_t end = counter + count; counter != end; counter++, sequence++) {
        uint64_t index = draw_page(&d, counter);

        stamp_write(hot_set_page(&hot, index), (uint32_t)index, sequence);
        sequence_table()[index] = sequence;
    }
    v->sequence = sequence;
    v->counter = counter;
}

void write_pages(struct vcpu *v, uint64_t count, uint64_t now)
{
    if (v->sequence > UINT32_MAX - count)
        v->sequence = 1;
    if (guest.parameters.pattern == WORKLOAD_RANDOM || guest.parameters.pattern == WORKLOAD_HOTCOLD)
        write_drawn(v, count);
    else
        write_neighbours(v, count, (now - guest.started) / 1000000);
}
